"""Compares the run that saved a checkpoint with the run that resumes it, in a reader's words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cpo_ds.checkpoint.manifest import Manifest
from cpo_ds.config import Config
from cpo_ds.engine.settings import DeepSpeedSettings
from cpo_ds.errors import UserError

# Names in an identity that messages explain.
PAIRS, SHAPE, BASE = "training pairs (fingerprint)", "model shape", "base"
_SETTINGS = {
    "starting adapter (fingerprint)": "the content of model.adapter",
    "adapter mode": "model.adapter_mode",
    "precision": "model.dtype",
    "quantization": "model.quantization",
    "optimizer states": "optim.states",
    "pairs per step": "batch.pairs",
    "seed": "train.seed",
}


def check_identity(
    path: Path,
    manifest: Manifest,
    identity: Mapping[str, Any],
    config: Config,
    tokenizer: Mapping[str, str],
) -> None:
    """Raises `UserError` if a checkpoint is of another run; names each difference, and its reason.

    `tokenizer` holds fingerprints of the tokenizer and its chat template.
    """
    differences = list(_differences(manifest.identity, identity))
    if PAIRS in differences:
        reason = _other_pairs(manifest, config, tokenizer)
        differences = [reason if entry == PAIRS else entry for entry in differences]
    if differences:
        raise UserError(
            f"the checkpoint {path} is of another run: {'; '.join(differences)}. Make them equal, "
            "name another checkpoint.resume, choose a new output_dir, or move the old run aside by "
            "checkpoint.resume: restart."
        )


def _differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[str]:
    """The values that differ, each as a part of a sentence; `PAIRS` for other pairs."""
    # Older checkpoints know the base's configuration by a fingerprint alone.
    without = SHAPE if BASE in saved else BASE
    for name in dict.fromkeys([*current, *saved]):
        before, now = saved.get(name), current.get(name)
        if name == without or before == now:
            continue
        if name == PAIRS:
            yield PAIRS
        elif name == BASE:
            yield from _other_base(before or {}, now or {})
        elif isinstance(before, dict) and isinstance(now, dict):
            for field in now | before:
                values = (_in_order(f"{name}.{field}", side.get(field)) for side in (before, now))
                yield from _difference(f"its {name}.{field}", *values)
        else:
            setting = f" ({_SETTINGS[name]})" if name in _SETTINGS else ""
            shown = name.removesuffix(" (fingerprint)")
            yield from _difference(f"its {shown}{setting}", before, now)


def _difference(name: str, before: object, now: object) -> Iterator[str]:
    if before != now:
        yield f"{name} is {before!r}, here it is {now!r}"


def _other_base(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Keys of the base's config.json that differ.

    Another version of transformers knows more keys or fewer, so then the common ones count alone.
    """
    version = "transformers"
    keys = now.keys() | before.keys()
    if before.get(version) != now.get(version):
        keys = now.keys() & before.keys()
    for key in sorted(keys - {version}):
        name = f"{key} in the config.json of model.name_or_path"
        yield from _difference(name, before.get(key), now.get(key))


_NOT_OF_PAIRS = ("data.eval_path", "data.cache")  # settings that do not make the training pairs


def _other_pairs(manifest: Manifest, config: Config, tokenizer: Mapping[str, str]) -> str:
    """The reason why the training pairs are others, as far as the checkpoint tells it."""
    # Settings that decide the pairs. One that the checkpoint does not know was added since.
    before, now = flat(manifest.configuration), flat(config.model_dump(mode="json"))
    names = [name for name in now if name.startswith("data.") and name not in _NOT_OF_PAIRS]
    names += ["batch.share_prefix"] + ["train.seed"] * bool(config.data.eval_fraction)
    reasons = [
        reason
        for name in names
        if name in before
        for reason in _difference(name, before[name], now[name])
    ]
    # Else it is what they are made of.
    reasons += [
        f"the {name} of model.name_or_path was changed"
        for name, fingerprint in tokenizer.items()
        if manifest.tokenizer.get(name, fingerprint) != fingerprint
    ]
    if not reasons:
        data = f"the content of data.path ({config.data.path})"
        if not manifest.tokenizer:
            data += ", or the tokenizer or its chat template,"
        reasons = [f"{data} was changed, or is read otherwise by this version of cpo_ds"]
    return f"its training pairs are others, since {' and '.join(reasons)}"


def check_weights_before(path: Path, manifest: Manifest, fingerprint: str) -> None:
    """Raises `UserError` if a checkpoint was trained from other weights than those loaded now."""
    if manifest.weights_before != fingerprint:
        raise UserError(
            f"the checkpoint {path} was trained from other weights than those that model."
            "name_or_path (and model.adapter) give now; name the model that the run began with, "
            "or choose a new output_dir."
        )


def changed_settings(manifest: Manifest, config: Config, settings: DeepSpeedSettings) -> list[str]:
    """Lists settings that differ from those of the checkpoint, as `name: before -> now`."""
    saved = flat(manifest.configuration) | flat(manifest.deepspeed)
    current = flat(config.model_dump(mode="json")) | flat(settings.file)
    # The DeepSpeed file's name does not matter, its content does.
    saved.pop("deepspeed", None)
    current.pop("deepspeed", None)
    # These may differ without a change to the training.
    skipped = ("checkpoint.", "logging.", "output_dir", "model.name_or_path", "data.cache")
    return [
        f"{key}: {saved.get(key)} -> {current.get(key)}"
        for key in current | saved
        if _in_order(key, saved.get(key)) != _in_order(key, current.get(key))
        and not key.startswith(skipped)
    ]


def _in_order(key: str, value: Any) -> Any:
    """The value; the modules of an adapter, whose order means nothing, are sorted."""
    is_modules = key.endswith(".target_modules") and isinstance(value, list)
    return sorted(set(value)) if is_modules else value


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Joins nested keys: `{"loss": {"name": "cpo"}}` -> `{"loss.name": "cpo"}`."""
    joined: dict[str, Any] = {}
    for key, value in values.items():
        nested = value if isinstance(value, dict) else {"": value}
        joined |= {f"{key}.{name}".rstrip("."): item for name, item in nested.items()}
    return joined
