"""A trained model at work: images, folders and videos to label maps and pictures."""
