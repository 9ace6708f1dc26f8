"""Configuration keys that offseg_d2 adds to Detectron2's defaults.

One line of meaning per key. Keys of Detectron2 keep their Detectron2 meaning; those whose
default value changes are listed at the end of :func:`add_offseg_config`.
"""

from detectron2.config import CfgNode as CN


def add_offseg_config(cfg: CN) -> None:
    """Add the keys of offseg_d2 to ``cfg`` (Detectron2's defaults), in place."""
    _add_input_keys(cfg)
    _add_backbone_keys(cfg)
    _add_head_keys(cfg)
    _add_mask_former_keys(cfg)
    _add_solver_keys(cfg)
    _add_test_keys(cfg)
    _change_defaults(cfg)


def _add_input_keys(cfg: CN) -> None:
    # What the dataset mapper yields in training: "sem_seg" (image and label map) or "instances"
    # (also one binary mask for each class that is present).
    cfg.INPUT.DATASET_MAPPER_NAME = "sem_seg"
    # Training resize. "keep_ratio": the image is scaled into SCALE x U(RATIO_RANGE), aspect kept.
    # "shortest_edge": Detectron2's MIN_SIZE_TRAIN / MAX_SIZE_TRAIN, as Mask2Former does.
    cfg.INPUT.RESIZE = CN()
    cfg.INPUT.RESIZE.TYPE_TRAIN = "keep_ratio"
    # (long side, short side) in pixels that RATIO_RANGE multiplies.
    cfg.INPUT.RESIZE.SCALE = [2048, 512]
    # Uniform range of the factor on SCALE in training.
    cfg.INPUT.RESIZE.RATIO_RANGE = [0.5, 2.0]
    # (long side, short side) in pixels at test time; the image is scaled, up or down, to fit,
    # aspect kept. For native resolution: the images' size, or TEST.SEM_SEG.TTA with RATIOS [1.0].
    cfg.INPUT.RESIZE.SCALE_TEST = [2048, 512]
    # A training crop is drawn again (at most 10 times) while one class takes this share or more.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    # Probability of a horizontal flip in training.
    cfg.INPUT.FLIP_PROBABILITY = 0.5
    # Probability of a vertical flip in training, for images without an upper side (aerial ones).
    cfg.INPUT.VERTICAL_FLIP_PROBABILITY = 0.0
    # Probability of a rotation by 90, 180 or 270 degrees in training, for the same; a crop that is
    # not square then changes its shape.
    cfg.INPUT.ROTATE_90_PROBABILITY = 0.0
    # Brightness, contrast, saturation and hue jitter in training.
    cfg.INPUT.PHOTOMETRIC_DISTORTION = True
    # Flip and distort whole batches on the GPU instead of single images in the workers, which have
    # less to do then. The draws are the same; colours differ by rounding. With rotations the flips,
    # which come before them, stay with the workers. Without a GPU the main process does the work.
    cfg.INPUT.AUGMENT_ON_DEVICE = False
    # In training decode a JPEG at 1/2, 1/4 or 1/8 of its scale where it is resized to less than
    # that; never at test. Somewhat faster with large photographs, but a mean of pixels is not what
    # the resize without low-pass filter takes: frames differ by 4 to 10 grey levels on average.
    cfg.INPUT.REDUCED_JPEG_DECODING = False
    # Value of 16-bit images that becomes 255, white: 4095 for 12-bit data, 1023 for 10-bit.
    cfg.INPUT.MAX_VALUE_16_BIT = 65535
    # Numbers, from 1, of the bands of TIFF files that are red, green and blue, such as [3, 2, 1].
    # By default the first three; files of more than four bands are then refused.
    cfg.INPUT.BANDS = []


def _add_backbone_keys(cfg: CN) -> None:
    # "SyncBN" (statistics of the whole batch, over all processes) or "BN" (of each process alone).
    cfg.MODEL.BATCH_NORM = "SyncBN"
    # Keep the backbone's batch norms in evaluation mode (running statistics) while training.
    cfg.MODEL.BACKBONE.FREEZE_BATCH_NORM = False
    # Compute the backbone's blocks again in the backward pass instead of keeping their activations:
    # less memory, more time, the same gradients.
    cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING = False
    # Compile backbone and head with torch.compile; needs a C++ compiler, on CUDA also triton.
    cfg.MODEL.COMPILE = False
    # Lay the weights of convolutions out with the channels innermost, and with them the features:
    # what tensor cores read, so meant for CUDA with SOLVER.AMP; nothing but rounding changes.
    cfg.MODEL.CHANNELS_LAST = False
    # Run CARAFE, FreqFusion's similarity and the per-pixel loss as Triton kernels on NVIDIA GPUs of
    # compute capability 8.0 or newer, if Triton is installed; False runs PyTorch's operations.
    cfg.MODEL.TRITON_KERNELS = True

    cfg.MODEL.EFFICIENTFORMER_V2 = CN()
    # "s0", "s1", "s2" or "l".
    cfg.MODEL.EFFICIENTFORMER_V2.VARIANT = "s1"
    # Largest stochastic depth rate; negative means the variant's own.
    cfg.MODEL.EFFICIENTFORMER_V2.DROP_PATH_RATE = -1.0
    # Initial value of the layer scales (1e-5 in the paper's ImageNet pre-training; training from
    # scratch within few iterations wants a larger one).
    cfg.MODEL.EFFICIENTFORMER_V2.LAYER_SCALE_INIT = 1e-5
    # Start from the attention biases of ImageNet weights, resized to this model's tables; by
    # default they are left out and the biases start at zero, as the authors' do.
    cfg.MODEL.EFFICIENTFORMER_V2.RESIZE_ATTENTION_BIASES = False

    cfg.MODEL.MIT = CN()
    # "b0" to "b5".
    cfg.MODEL.MIT.VARIANT = "b0"
    # Largest stochastic depth rate; negative means the paper's 0.1.
    cfg.MODEL.MIT.DROP_PATH_RATE = -1.0

    cfg.MODEL.MSCAN = CN()
    # "t", "s", "b" or "l".
    cfg.MODEL.MSCAN.VARIANT = "t"
    # Largest stochastic depth rate; negative means the variant's own.
    cfg.MODEL.MSCAN.DROP_PATH_RATE = -1.0

    cfg.MODEL.SWIN = CN()
    # "t", "s", "b" or "l".
    cfg.MODEL.SWIN.VARIANT = "t"
    # Largest stochastic depth rate; negative means 0.3, as Mask2Former's.
    cfg.MODEL.SWIN.DROP_PATH_RATE = -1.0
    # Side of an attention window in tokens; 0 means the variant's own (7, for b and l 12).
    cfg.MODEL.SWIN.WINDOW_SIZE = 0

    cfg.MODEL.TIMM = CN()
    # Network of `MODEL.BACKBONE.NAME` build_timm_backbone, by its name in timm.
    cfg.MODEL.TIMM.NAME = ""
    # Start from timm's own weights, which it downloads.
    cfg.MODEL.TIMM.PRETRAINED = False
    # Local file with weights in timm's names to start from, instead of downloading.
    cfg.MODEL.TIMM.CHECKPOINT = ""
    # [height, width] for networks that are built for one input size; empty for all others.
    cfg.MODEL.TIMM.IMAGE_SIZE = []


def _add_head_keys(cfg: CN) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    # Last layer: "offset" (offset learning) or "plain" (dropout and 1x1 convolution).
    head.CLASSIFIER = "offset"
    # Registered head to which `MODEL.SEM_SEG_HEAD.NAME` HostHead gives that last layer.
    head.HOST = "SemSegFPNHead"
    # Ablation switch of the offset classifier: move the class representations.
    head.CLASS_OFFSET = True
    # Ablation switch of the offset classifier: move the pixel features.
    head.FEATURE_OFFSET = True
    # Per-pixel offset classifier: layer norm over the class scores, as the authors' models have it;
    # the paper's text has none.
    head.CLASS_NORM = True
    # Standard deviation of the first weights of the offsets' projections; with 0 a model begins
    # without offsets.
    head.OFFSET_INIT_STD = 0.02
    # Channel dropout before the plain classifier (the offset classifier has none).
    head.DROPOUT = 0.1
    # Losses of PerPixelHead beside the plain cross-entropy; modeling/losses.py has the formulas.
    head.LOSS = CN()
    # Weights of the classes in the cross-entropy: None (all alike), a list with a number for each,
    # or "balanced" (inversely as frequent as in the training labels; the log shows the numbers).
    head.LOSS.CLASS_WEIGHTS = None
    # Online hard example mining: share of the labelled pixels, those with the highest loss, that
    # count in the cross-entropy, such as 0.25; 1 takes all.
    head.LOSS.OHEM_SHARE = 1.0
    # Factor on the dice loss that is added to the cross-entropy; 0 leaves it out.
    head.LOSS.DICE_WEIGHT = 0.0
    # Name in the pixel decoder registry.
    head.PIXEL_DECODER_NAME = "OffSegPixelDecoder"

    cfg.MODEL.OFFSEG = CN()
    # Channels of the four levels (res2..res5) before they are fused.
    cfg.MODEL.OFFSEG.LEVEL_CHANNELS = [32, 32, 64, 128]

    cfg.MODEL.SEGFORMER = CN()
    # Max-pooling before the classifier: "auto" (only before the offset classifier, as the paper's
    # models), "always" or "never".
    cfg.MODEL.SEGFORMER.POOL = "auto"
    # Reduce each level by a 1x1 convolution without norm and ReLU, as the original SegFormer and
    # Hugging Face's models; their weights need it.
    cfg.MODEL.SEGFORMER.LINEAR_LEVELS = False

    cfg.MODEL.LIGHT_HAM = CN()
    # Channels inside the Hamburger.
    cfg.MODEL.LIGHT_HAM.CHANNELS = 256
    # Draw new random bases at each evaluation too, as the authors' code does; by default they come
    # from a fixed seed, so that predictions are repeatable.
    cfg.MODEL.LIGHT_HAM.RANDOM_BASES = False


def _add_mask_former_keys(cfg: CN) -> None:
    # Network and losses of MaskFormerHead; the width of all its parts is SEM_SEG_HEAD.CONVS_DIM.
    cfg.MODEL.MASK_FORMER = CN()
    # Learned queries, each of which predicts one mask and its class.
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 100
    # Attention heads, in the pixel decoder and in the transformer decoder.
    cfg.MODEL.MASK_FORMER.NHEADS = 8
    # Layers of the pixel decoder's deformable encoder.
    cfg.MODEL.MASK_FORMER.ENC_LAYERS = 6
    # Hidden width of the feed-forward networks of the pixel decoder.
    cfg.MODEL.MASK_FORMER.ENC_DIM_FEEDFORWARD = 1024
    # Layers of the transformer decoder. There is one prediction more than layers; in the configs
    # of facebookresearch/Mask2Former the key of this name counts the predictions.
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 9
    # Hidden width of the feed-forward networks of the transformer decoder.
    cfg.MODEL.MASK_FORMER.DIM_FEEDFORWARD = 2048
    # Losses on every prediction instead of the last one alone.
    cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION = True
    # Weight of the no-object class in the classification loss.
    cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT = 0.1
    # Weight of the classification loss, and of the class in the matching.
    cfg.MODEL.MASK_FORMER.CLASS_WEIGHT = 2.0
    # Weight of the masks' cross-entropy, and of it in the matching.
    cfg.MODEL.MASK_FORMER.MASK_WEIGHT = 5.0
    # Weight of the dice loss, and of it in the matching.
    cfg.MODEL.MASK_FORMER.DICE_WEIGHT = 5.0
    # Points at which a mask is compared, in the losses and in the matching.
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 12544
    # Random points per point of the mask losses, of which the most uncertain ones are kept.
    cfg.MODEL.MASK_FORMER.OVERSAMPLE_RATIO = 3.0
    # Share of the mask losses' points that are the most uncertain ones; the others are random.
    cfg.MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO = 0.75


def _add_solver_keys(cfg: CN) -> None:
    # Optimizer: "ADAMW".
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Decay rates of the optimizer's running means of gradients and of their squares.
    cfg.SOLVER.BETAS = [0.9, 0.999]
    # Table of parameter groups: "per_pixel" (OffSeg's, by backbone) or "mask_query"
    # (Mask2Former's: a slow backbone, norms and embeddings without weight decay).
    cfg.SOLVER.PARAM_GROUPS = "per_pixel"
    # Learning-rate factor of everything in the head (and of the talking heads, as the authors');
    # for the parameter groups "per_pixel".
    cfg.SOLVER.HEAD_LR_FACTOR = 10.0
    # Factor on the head's learning rate for the two projections of offset learning. 1 is the
    # paper's; with few classes and a fast head a smaller one trains more evenly.
    cfg.SOLVER.OFFSET_LR_FACTOR = 1.0
    # Learning-rate factor of the backbone, for the parameter groups "mask_query".
    cfg.SOLVER.BACKBONE_LR_FACTOR = 0.1
    # Iteration at which the poly schedule reaches zero; 0 means MAX_ITER.
    cfg.SOLVER.POLY_END_ITER = 0
    # Exponent of the poly schedule (1 is linear).
    cfg.SOLVER.POLY_LR_POWER = 1.0
    # Length of the run in passes over the training images, such as 50 or 0.5, from which MAX_ITER
    # then follows; periods of evaluations and checkpoints longer than it become a tenth of it. 0
    # means that MAX_ITER counts. A warm-up longer than the run always becomes a tenth of it.
    cfg.SOLVER.MAX_EPOCHS = 0.0
    # Training ends after this many evaluations (TEST.EVAL_PERIOD) without a better BEST_METRIC; 0
    # never ends it.
    cfg.SOLVER.EARLY_STOPPING_PATIENCE = 0
    # Iterations between two lines of progress in the log. On a GPU losses are checked as often.
    cfg.SOLVER.LOG_PERIOD = 20
    # Round the factors of float32 matrix products to TF32 on NVIDIA GPUs: faster, 10 bits.
    cfg.SOLVER.TF32 = False
    # Batches whose gradients are averaged into one optimizer step.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Autocast type when SOLVER.AMP.ENABLED: "float16" (CUDA, with gradient scaler) or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Periodic checkpoints that are kept (besides the best and the last); 0 keeps all.
    cfg.SOLVER.KEEP_CHECKPOINTS = 3
    # Metric that decides which checkpoint is the best, as "task/key"; "" keeps no best one.
    cfg.SOLVER.BEST_METRIC = "sem_seg/mIoU"
    cfg.SOLVER.EMA = CN()
    # Keep a moving average of the weights; evaluations and `model_best` use it.
    cfg.SOLVER.EMA.ENABLED = False
    # Share of the average that stays in each iteration; it reaches back 1 / (1 - DECAY) of them.
    cfg.SOLVER.EMA.DECAY = 0.9998


def _add_test_keys(cfg: CN) -> None:
    # Predict with the equivalent faster form of OffSeg (offseg_d2.deploy), in --eval-only and
    # for single images; evaluations during a training use the model as it is.
    cfg.TEST.DEPLOY = False
    # Images of each test set, evenly spread, on which a training evaluates in between; 0 means all.
    # After the last iteration and in --eval-only it is always all of them.
    cfg.TEST.SUBSET = 0
    cfg.TEST.SEM_SEG = CN()
    # "whole" image or "slide" (sliding window).
    cfg.TEST.SEM_SEG.MODE = "whole"
    # Window (height, width) in pixels of the network's input.
    cfg.TEST.SEM_SEG.CROP_SIZE = [512, 512]
    # Step between windows (vertical, horizontal) in pixels of the network's input.
    cfg.TEST.SEM_SEG.STRIDE = [480, 480]
    # Windows that go through the network at once.
    cfg.TEST.SEM_SEG.WINDOW_BATCH = 4
    # The normalised image is zero-padded (right, bottom) to a multiple of this before inference.
    cfg.TEST.SEM_SEG.SIZE_DIVISIBILITY = 0
    # Test-time augmentation: images are predicted at several sizes, and probabilities averaged.
    cfg.TEST.SEM_SEG.TTA = CN()
    # Whether to use it.
    cfg.TEST.SEM_SEG.TTA.ENABLED = False
    # Sizes relative to the original image, whatever RESIZE.SCALE_TEST is.
    cfg.TEST.SEM_SEG.TTA.RATIOS = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    # Each size also mirrored.
    cfg.TEST.SEM_SEG.TTA.FLIP = True
    # Classes absent from the ground truth but predicted: "zero" counts them as IoU 0 (the
    # authors' and mmsegmentation's rule), "skip" leaves them out (Detectron2's rule).
    cfg.TEST.SEM_SEG.ABSENT_CLASSES = "zero"
    # Write predictions as run-length encoded JSON into OUTPUT_DIR/inference.
    cfg.TEST.SEM_SEG.SAVE_PREDICTIONS = False
    # Form of the PNGs of `--save-predictions`: "class_ids", or that of a benchmark's test server,
    # "ade20k" or "cityscapes".
    cfg.TEST.SEM_SEG.PREDICTION_FORMAT = "class_ids"
    # Measure the Boundary IoU of each class too (Cheng et al., CVPR 2021).
    cfg.TEST.SEM_SEG.BOUNDARY_IOU = False
    # Images of the first test set that are drawn for TensorBoard at each evaluation of a training,
    # always the same ones; 0 draws none.
    cfg.TEST.SEM_SEG.NUM_PICTURES = 4
    # Write metrics.json and report.html into OUTPUT_DIR/inference/<dataset>: "eval_only" (not when
    # a training evaluates), "always" or "never".
    cfg.TEST.SEM_SEG.REPORT = "eval_only"


def _change_defaults(cfg: CN) -> None:
    # ImageNet statistics of RGB images, as all backbones here were pre-trained with.
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.MODEL.META_ARCHITECTURE = "PerPixelSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "PerPixelHead"
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 256
    # 0: no part of the backbone is frozen (Detectron2's default is 2); 1 freezes the stem, 2 also
    # the first stage, up to 5.
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.WEIGHTS = ""
    # cuDNN tries its algorithms where all training batches have one size; never in evaluations.
    cfg.CUDNN_BENCHMARK = True
