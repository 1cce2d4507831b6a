"""What lies beside an adapter's weights so that others can use it: tokenizer, template, generation settings, a card."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from studio import __version__
from studio.compare import fingerprints
from studio.engine.best import Ending
from studio.engine.convertplan import Base, Plan
from studio.engine.failure import model_failure
from studio.engine.foreign.settings import Settings
from studio.engine.foreign.sources import SAID, Found, fingerprint
from studio.engine.journal import Journal
from studio.engine.loading import adapter_tokenizer
from studio.engine.public_names import public_name
from studio.engine.saving import CARD, PATHS, front_matter, model_card, plain, save_tokenizer
from studio.engine.stopping import SETTINGS, Endings, add_to_saved, remember
from studio.events import VerdictEvent
from studio.model_choices import ModelChoice
from studio.records import DataError
from studio.records.template_names import NamedTemplate, named_template, template_names
from studio.remote_code import allowed

_GENERATION: Any = GenerationConfig
_CHECKED = (("learned", "learned"), ("leaked", "leaked"), ("retained", "of what it knew before kept"))


def write_beside(plan: Plan, found: Found, base: Base, journal: Journal) -> PreTrainedTokenizerBase:
    """Tokenizer, chat template and generation settings into the working folder; returns the tokenizer.

    Raises EngineError, field prompt_template, for a template nobody knows.
    """
    tokenizer = adapter_tokenizer(base.ref, found.place.folder)
    template = _template(plan.config.prompt_template, found.settings, journal)
    if template:
        tokenizer.chat_template = template.source
    if not tokenizer.chat_template:
        journal.warn("Nothing says with which chat template it was trained, and the base has none.", "prompt_template")
    save_tokenizer(tokenizer, plan.work)
    _generation(plan.work, found.place.folder, base)
    if template and template.stop_words:
        holder: Any = _GENERATION()
        remember(SimpleNamespace(generation_config=holder), tokenizer, template.stop_words)
        ends = Endings(frozenset(holder.eos_token_id or ()), tuple(holder.stop_strings or ()))
        add_to_saved(plan.work, ends)
    return tokenizer


def _template(wanted: str | None, settings: Settings, journal: Journal) -> NamedTemplate | None:
    """The template that is named, else that of the settings, else None: the adapter's or the base's own."""
    if wanted:
        try:
            return named_template(wanted)
        except DataError as error:
            hint = "Choose one of them, or leave it empty."
            raise model_failure(f"prompt_template: {error.message}", hint, "prompt_template") from error
    told = settings.template
    if not told:
        return None
    if told in template_names():
        return named_template(told)
    if "{" in told:  # the text itself
        return NamedTemplate("", "", told)
    journal.warn(f"The chat template {told[:80]} it was trained with is not known here; the base's own is taken.")
    return None


def _generation(work: Path, own: Path | None, base: Base) -> None:
    """The adapter's own settings, else the base's file: transformers refuses to write some that it reads."""
    for folder in (own, Path(base.ref.path_or_id)):
        if folder and (folder / SETTINGS).is_file():
            shutil.copyfile(folder / SETTINGS, work / SETTINGS)
            return
    config = AutoConfig.from_pretrained(base.ref.path_or_id, local_files_only=True, trust_remote_code=allowed())
    _GENERATION.from_model_config(config).save_pretrained(work)


def write_card(plan: Plan, found: Found, report: dict[str, Any]) -> None:
    """README.md: of our own run all that is known about it, else what the import found. No path of this machine."""
    own = own_card(plan.trained) if plan.trained else ""
    text = own or foreign_card(plan, found, report)
    (plan.work / CARD).write_text(text, encoding="utf-8")


def own_card(choice: ModelChoice) -> str:
    """The card of a run, for the step that was chosen; "" when its configuration cannot be read."""
    run, config = choice.run, choice.trained()
    if run is None or config is None:
        return ""
    report = run.read_report() or {}
    verdict = report.get("verdict") if isinstance(report.get("verdict"), dict) else {}
    summary = str((verdict or {}).get("summary") or "")
    if choice.step is not None:
        ending = Ending(choice.step, choice.step, early=False)
        parts = [_check_at(choice), f"Of the whole training: {summary}" if summary else ""]
        summary = " ".join(part for part in parts if part)
    else:
        status = run.read_status()
        ending = _ending(report, status.step if status else 0)
    return model_card(config, fingerprints(run), ending, summary)


def _ending(report: dict[str, Any], step: int) -> Ending:
    told = report.get("ending")
    try:
        return Ending(**told) if isinstance(told, dict) else Ending(step, step, early=False)
    except TypeError:  # written by another version
        return Ending(step, step, early=False)


def _check_at(choice: ModelChoice) -> str:
    """What the check during the training said at the step of a checkpoint."""
    assert choice.run is not None
    offset, found = 0, None
    while True:
        events, end = choice.run.read_events(offset)
        checks = [one for one in events if isinstance(one, VerdictEvent) and one.step == choice.step]
        found = checks[-1] if checks else found
        if end == offset:
            break
        offset = end
    shares = [(said, getattr(found, name)) for name, said in _CHECKED] if found else []
    told = [f"{share:.0%} {said}" for said, share in shares if share is not None]
    return f"Checked at step {choice.step}: {', '.join(told)}." if told else ""


def foreign_card(plan: Plan, found: Found, report: dict[str, Any]) -> str:
    """The card of an import: where it comes from, what it is, its proof, how it was trained."""
    proof, lora = report["proof"], report["lora"]
    facts = (
        f"Base model: `{plain(public_name(report['base']))}`",
        f"Imported by Crucible {__version__} from `{plain(found.place.name)}` ({SAID[found.place.kind]}), "
        f"SHA-256 `{fingerprint(found.place)}`",
        *(_of_adapter(lora) if lora else ("Method: full (every weight was trained)",)),
        f"Proof: {report['tensors']} tensors found their place in the base model; {proof['answers_changed']} of "
        f"{proof['prompts']} answers changed, logits by up to {proof['max_logit_difference'] or 0:.3g}",
    )
    parts = [
        front_matter(report["base"], "peft" if lora else "transformers"),
        f"# {plain(plan.out.name)}",
        "\n".join(f"* {fact}" for fact in facts),
        "The licence and the limits of the base model apply. The data it was trained on is not known here.",
    ]
    if found.settings.training:
        told = yaml.safe_dump(_public(dict(found.settings.training)), sort_keys=False, allow_unicode=True, width=1000)
        parts.append(f"## Configuration it was trained with\n\n~~~~yaml\n{told}~~~~")
    return "\n\n".join(parts) + "\n"


def _of_adapter(lora: dict[str, Any]) -> tuple[str, ...]:
    layers = lora["target_modules"]
    kinds = (", rsLoRA" if lora["use_rslora"] else "") + (", DoRA" if lora["use_dora"] else "")
    return (
        f"Adapter: rank {lora['r']}, alpha {lora['lora_alpha']}{kinds}",
        f"Layers: {plain(layers if isinstance(layers, str) else ', '.join(layers))[:500]}",
    )


def _public(value: Any, key: str = "") -> Any:
    """A configuration without the paths of the machine it was written on."""
    if isinstance(value, dict):
        return {str(name): _public(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(item, key) for item in value]
    if isinstance(value, str):
        return public_name(value) if key in PATHS else value
    return value if value is None or isinstance(value, int | float | bool) else str(value)
