"""The models in the authors' order of operations: what speed and memory are compared with.

Same weights, same results, but every step as the papers and their published models compute it:

* CARAFE: k^2 shifted multiply-adds over the nearest-upsampled map;
* cosines of neighbours: unfold, then ``cosine_similarity``;
* attention biases: gathered and resized (bicubic) at every call; queries, keys and values
  projected one by one; batch norms apart from their convolutions;
* offsets: pixel features and representations are both moved, then multiplied;
* several levels: each resized to the finest, concatenated, then convolved;
* attention of MiT and of Mask2Former's queries: similarity, softmax and sum one after the other,
  masks repeated for each head; deformable attention: all levels sampled, stacked, then summed;
* maps: channels outermost, as PyTorch lays them out by default;
* results: all logits (masks) resized to the image, then argmax; in training, then cross-entropy.

What the authors' code computes twice or to no effect (a second softmax of the same kernels,
resizes to the same size) is not repeated here: the baseline is their mathematics, not their slips.

All of it is plain PyTorch with plain autograd, so the forms can be trained as well.
"""

from .swap import authors_order, logits

__all__ = ["authors_order", "logits"]
