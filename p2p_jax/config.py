"""Every key of a config, with its default; reading and merging configs."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Any

from ml_collections import ConfigDict

from p2p_jax.losses import RECONSTRUCTION
from p2p_jax.words import ConfigError

# ConfigDict resolves attributes at run time, which a type checker cannot follow.
Config = Any

_SHOWN = 20  # of a long list, before "and N more"
EVERY = ("log", "eval", "sample", "save")  # train.*_every


def shortened(problems: Sequence[str]) -> list[str]:
    """A list with an end: at most so many, and how many more there are."""
    more = len(problems) - _SHOWN
    return [*problems[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]


def base() -> Config:
    """The defaults: the paper's facades recipe, on whatever devices there are."""
    c = ConfigDict()
    c.seed = 0  # of everything random: initial weights, order, jitter, dropout

    c.data = d = ConfigDict()
    d.source = "folder"  # where pairs come from; README, "Your own data", lists all sources
    d.path = ""  # the folder, or the file of a manifest or an archive; it is only read
    d.name = ""  # tfds: which data set, as pix2pix/facades; else what reports call the data
    d.features = ("image",)  # tfds: the image that holds both halves, or that of A and that of B
    d.url = ""  # download official sets from here instead: a folder of NAME.tar.gz
    d.direction = "AtoB"  # AtoB: A, the left half, is the source; BtoA: B, the right half, is
    d.train_split = "train"  # split to train on
    d.eval_split = "val"  # split to evaluate on; where it is missing, a tenth is held out
    d.split_seed = 0  # decides which tenth
    d.task = "auto"  # translate, colorize, grey, inpaint or labels; auto: what the source is for
    d.channels = (3, 3)  # of source and target; 1 makes colour images grey
    d.alpha = "refuse"  # transparency of PNG and WebP: refuse, drop, white, black (below it), keep
    d.source_range = (0.0, 0.0)  # values that become -1 and 1; 0,0: all that 8 or 16 bits hold
    d.target_range = (0.0, 0.0)
    d.labels = "source"  # which side of task labels is class labels: source, target or both
    d.palette = ""  # their colours, as "#0000aa #ff0000"; empty: a pixel's value is its class
    d.classes = 0  # how many classes there are where there is no palette
    d.label_tolerance = 0  # how far a colour may be from the palette's; 255: nearest (for JPEG)
    d.hole = 0.5  # task inpaint: the share of each side that is cut out of the middle
    d.canny = (100, 200)  # source edges: thresholds of the gradient, of 8-bit grey
    d.preprocess = "resize_and_crop"  # scale_width_and_crop, scale_width, crop, pad or none
    d.resize = "bilinear"  # or bicubic, area, nearest
    d.load_size = (286, 286)  # (height, width) that images are resized to,
    d.crop_size = (256, 256)  # and that are cut out of them at random, for the networks
    d.flip = True  # mirror half of the pairs
    d.flip_vertical = False  # turn half of them upside down
    d.rotate = False  # by 0, 90, 180 or 270 degrees
    d.brightness = 0.0  # the source alone is made up to so much brighter or darker; likewise:
    d.contrast = 0.0
    d.saturation = 0.0
    d.shuffle = True  # a new order every epoch
    d.on_error = "fail"  # or substitute: train on another pair for one that cannot be read
    d.cache = "none"  # none: decode every time; host or device: keep decoded pairs in memory
    d.cache_share = 0.5  # of a device's memory, that cache=device may take
    d.threads = 0  # that decode; 0 is one a core
    d.max_examples = 0  # train on this many pairs at most; 0 is all
    d.prepared_dir = ""  # for prepared data; empty is p2p_jax in the user's cache directory

    c.model = m = ConfigDict()
    m.init = "normal"  # of kernels: normal, xavier, kaiming or orthogonal
    m.init_gain = 0.02  # their scale; kaiming takes none
    m.norm_eps = 1e-5  # added to variances
    m.norm_momentum = 0.9  # share of the old running statistics that each update keeps
    m.norm_scale_std = 0.02  # the norms' scales begin at N(1, this)
    m.generator = g = ConfigDict()
    g.name = "unet"  # unet, unet_upsample, encoder_decoder or resnet
    g.depth = 8  # levels of a U-Net, each halving the size
    g.base_features = 64  # features of the first level; doubled by each, up to eightfold
    g.features = ()  # or the features of each level of a U-Net, one by one
    g.blocks = 9  # residual blocks of a resnet
    g.upsample = "auto"  # deconv, nearest, bilinear or pixel_shuffle; auto: as the network is known
    g.norm = "batch"  # batch, instance (no parameters), instance_affine, group, layer or none
    g.norm_group = 1  # images that share batch's statistics; 1 as at batch size 1; 0: all
    g.bias = "auto"  # of convolutions: all, first, last, ends, unnormed (where no norm follows)
    g.innermost_norm = "auto"  # yes or no: of a U-Net's innermost encoder level
    g.skip_activation = "auto"  # relu or leaky: what a U-Net's skips pass before the decoder
    g.slope = 0.2  # of LeakyReLU below zero
    g.noise = 0  # channels of Gaussian noise beside the source
    g.dropout = (1, 2, 3)  # decoder blocks from the innermost that drop half; resnet: any is all
    m.discriminator = d = ConfigDict()
    d.name = "patchgan"  # patchgan or pixel
    d.layers = 3  # of stride 2: 0 to 5 see patches of 1, 16, 34, 70, 142, 286 pixels
    d.base_features = 64
    d.scales = 1  # discriminators, each for an image half the size of the one before
    d.conditional = True  # whether it sees the source beside the image
    d.spectral = False  # spectral normalisation of its kernels; with norm=none set bias=all, too
    d.norm = "batch"
    d.norm_group = 1
    d.bias = "auto"
    d.slope = 0.2

    c.loss = loss = ConfigDict()
    loss.adversarial = "vanilla"  # vanilla, lsgan, hinge or wgan-gp
    loss.disc = 0.5  # weight of the discriminator's loss, both sides added up
    loss.gan = 1.0  # weight of the generator's adversarial loss
    loss.gradient_penalty = 10.0  # weight of wgan-gp's penalty, within loss.disc
    loss.feature_matching = 0.0  # weight of the distance of D's layers on fake and real
    loss.l1 = 100.0  # weight of the mean absolute error, in [-1, 1]; likewise below
    loss.l2 = 0.0  # mean squared error
    loss.smooth_l1 = 0.0  # squared below an error of 1, absolute above
    loss.charbonnier = 0.0  # a smooth absolute error
    loss.ssim = 0.0  # one minus structural similarity
    for name in RECONSTRUCTION:
        if name not in loss:  # added since
            loss[name] = 0.0

    c.optim = o = ConfigDict()
    o.gen = ConfigDict({"lr": 2e-4, "b1": 0.5, "b2": 0.999, "eps": 1e-8})
    o.disc = ConfigDict({"lr": 2e-4, "b1": 0.5, "b2": 0.999, "eps": 1e-8})
    o.batch_scaling = "none"  # linear or sqrt: rates are for batch size 1 and grow with it
    o.schedule = "constant"  # constant, linear, step, cosine or plateau (of train.best)
    o.decay_from = 0.5  # the share of the run after which linear falls towards zero
    o.decay_every = 0.25  # the share of the run after which step falls, again and again
    o.decay_factor = 0.1  # by which step and plateau fall
    o.patience = 5  # evaluations without progress before plateau lets rates fall
    o.warmup_steps = 0  # rates rise over so many steps first
    o.by_epoch = False  # rates change between epochs only, but for the warm-up

    c.mesh = ConfigDict()
    c.mesh.devices = 0  # devices to train on; 0 is all
    c.mesh.spatial = 1  # devices that share each image, a band of rows each
    c.mesh.start_timeout = 300  # seconds that processes wait for one another at the start
    c.mesh.heartbeat_timeout = 100  # seconds after which the loss of one ends the others

    c.train = t = ConfigDict()
    t.batch_size = 1  # over all devices
    t.accumulate = 1  # parts of each device's share that are computed one after another, to save
    # memory: same result, but the generator runs forward twice
    t.shard_optimizer = False  # each device keeps a share of Adam's averages, to save memory
    t.remat = "none"  # or activations: those between convolutions are computed again, not kept
    t.steps = 0  # updates of each network; above 0 it wins over
    t.epochs = 200.0  # passes over the training pairs
    t.steps_per_dispatch = 1  # updates that the device does without asking
    t.precision = "float32"  # float32 (full products), tf32, bfloat16 or float64
    t.conv_form = "auto"  # plain, polyphase, products; auto is what is fastest on the device
    t.init_from = ""  # begin with the networks of this other run's folder
    t.init_nets = "both"  # or generator
    t.simultaneous = False  # the generator learns from the discriminator before its update
    t.ema_decay = 0.0  # of averaged generator weights, kept beside the others; 0: none
    t.log_every = 50  # steps; likewise below
    t.eval_every = 2000
    t.sample_every = 2000
    t.save_every = 1000
    t.on_nan = "stop"  # where a loss is not finite: stop, skip the update, or rollback and retry
    t.on_save_error = "stop"  # where a save fails, as on a full disk: stop, or continue without it
    t.keep = 2  # latest checkpoints kept
    t.best = "l1"  # the figure of eval.metrics whose best checkpoint is kept as well
    t.tensorboard = False  # write for TensorBoard as well, into WORKDIR/tensorboard
    t.early_stop = 0  # evaluations in a row without progress of it that end the run; 0: never

    c.eval = e = ConfigDict()
    e.batch_size = 0  # 0 is one image a device
    # Of each image: l1, l2, psnr, ssim, ms_ssim, accuracy, lpips; of all: lab, iou, fid, kid, fcn.
    e.metrics = ("l1", "psnr", "ssim")
    e.split = ""  # empty is data.eval_split
    e.examples = 0  # evaluate this many pairs at most; 0 is all
    e.ema = False  # use the averaged weights
    e.dropout = True  # dropout (and noise) stays on, as in the paper, where it is the noise
    e.norm_stats = "batch"  # batch: each image's own statistics, as in the paper; or running
    e.sample_count = 6  # pairs in the grid
    e.bootstrap = 1000  # resamples of the examples that 95% intervals are taken from; 0: none
    e.seeds = 1  # of dropout and noise: figures are means over so many, and their spread is told
    e.inception = ""  # fid, kid: the file with Inception v3's weights that FID is computed with
    e.kid_subset = 1000  # kid: images in each random subset,
    e.kid_subsets = 100  # and how many of these
    e.lpips = ""  # lpips: the file of its linear layers,
    e.lpips_network = ""  # that of the network below them,
    e.lpips_backbone = "alex"  # and which that is, alex or vgg
    e.segmenter = ""  # fcn: the folder of a run from photos to class labels, which judges photos
    return c.lock()


def flatten(config: Config, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def unknown_key(key: str, known: Collection[str]) -> str:
    """Says that a dotted key does not exist, and which one may have been meant."""
    leaf = {name.rsplit(".", 1)[-1]: name for name in known}
    near = difflib.get_close_matches(key, known, 1, 0.75)
    near = near or [leaf[n] for n in difflib.get_close_matches(key.rsplit(".", 1)[-1], leaf, 1)]
    return f"{key}: no such key" + (f"; did you mean {near[0]}?" if near else "")


def coerce(key: str, value: Any, like: Any) -> Any:
    """A value as the type that `base` has for the key.

    Integers become floats, lists become tuples, and one number stands for both sides of a size or
    for a tuple of one.

    Raises:
      ConfigError: it is of another type.
    """
    kind = type(like)
    if kind is tuple:
        if type(value) is int and (not like or type(like[0]) is int):
            return (value, value) if len(like) == 2 else (value,)
        if isinstance(value, list | tuple):
            element = type(like[0]) if like else int
            if element is float:
                value = [float(v) if type(v) is int else v for v in value]
            if all(type(v) is element for v in value):
                return tuple(value)
            raise ConfigError([f"{key}: {value!r} must hold {_MANY[element]} only"])
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is kind:
        return value
    raise ConfigError([f"{key}: {value!r} is not {_KINDS[kind]}; the default is {like!r}"])


_MANY = {int: "whole numbers", float: "numbers", str: "words"}
_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a word",
    tuple: "a tuple, as in 256,256",
}


def merge(config: Config, values: dict[str, Any]) -> Config:
    """A config with dotted keys set.

    Raises:
      ConfigError: unknown keys or wrong types, all of them.
    """
    config = config.copy_and_resolve_references()
    flat, problems = flatten(config), []
    for key, value in values.items():
        if key not in flat:
            problems.append(unknown_key(key, flat))
            continue
        try:
            *path, leaf = key.split(".")
            node = config
            for part in path:
                node = node[part]
            node[leaf] = coerce(key, value, flatten(base())[key])
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return config.lock()


def field_changes(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """(key, old, new) of the changes that would make a resumed run another run.

    Lengths, intervals, evaluation, how data is fetched and what saves memory may change freely; the
    length not where the learning rate depends on it.
    """
    before, after = flatten(old), flatten(new)
    free = {"data.prepared_dir", "mesh.spatial", "mesh.start_timeout", "mesh.heartbeat_timeout"}
    free |= {f"train.{name}" for name in ("keep", "accumulate", "remat", "shard_optimizer")}
    free |= {f"train.{name}" for name in ("on_nan", "on_save_error", "early_stop", "tensorboard")}
    free |= {"eval.bootstrap"}
    free |= {f"data.{name}" for name in ("url", "cache", "cache_share", "threads")}
    # What only matters at the start.
    free |= {"train.init_from", "train.init_nets"}
    free |= {"model.init", "model.init_gain", "model.norm_scale_std"}
    free |= {f"train.{k}_every" for k in EVERY}
    if new.optim.schedule == "plateau":  # rates follow evaluations
        free -= {"train.eval_every"}
    else:
        free |= {"train.best", *(key for key in after if key.startswith("eval."))}
    if new.optim.schedule in ("constant", "plateau"):
        free |= {"train.steps", "train.epochs"}
    return [
        (key, before.get(key), after[key])
        for key in after
        if before.get(key) != after[key] and key not in free
    ]
