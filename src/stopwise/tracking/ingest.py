"""The record of a run in MLflow, taken from what the steps wrote: idempotent, resumable, and never in the way.

One parent run per configuration (name + digest), one child per artifact (rule + wildcards + artifact digest). Runs are
looked up by their tags, so that a repeated or resumed pipeline adds nothing twice; a child whose recording was cut off
is still RUNNING and is completed in place; a new digest of the same artifact supersedes the older child, which stays
and gets the tag ``superseded_by``. When the store is locked or down, what could not be recorded is returned as pending.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stopwise import __version__
from stopwise.artifacts.tables import ArtifactError, digest, read_provenance
from stopwise.tracking.fields import (
    ARTIFACT,
    COMMIT,
    CONFIG,
    DIGEST,
    FILE,
    NAME,
    PARENT,
    SUPERSEDED,
    TAG_LENGTH,
    Step,
    curves_of,
    cut,
    flatten,
    inputs_of,
    metrics_of,
    params_of,
    safe_key,
    shown_table,
    tags_of,
    times_of,
)
from stopwise.tracking.store import Store, is_unavailable, open_store, reason

LARGEST_FILE = 5_000_000  # bytes; larger tables stay on disk, their digest and metrics are recorded
ATTACHED = (".svg", ".png", ".csv", ".html", ".json", ".md")
SHOWN = "mlflow.loggedArtifacts"  # the tag by which MLflow knows a table among the files of a run
PARAMS_PER_BATCH, METRICS_PER_BATCH = 100, 800  # MLflow's log_batch takes 100 parameters, 100 tags and 1000 of all


@dataclass
class Report:
    """What MLflow holds of each artifact: rows of the ``tracking`` table, and the parent's id when it was reached."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    run_id: str | None = None

    @property
    def pending(self) -> list[dict[str, Any]]:
        """The rows that were not recorded."""
        return [row for row in self.rows if row["status"] == "pending"]

    def warning(self) -> str | None:
        """Return the one message about what is pending, None when nothing is."""
        if not self.pending:
            return None
        reasons = list(dict.fromkeys(row["reason"] for row in self.pending))
        more = f" (and {len(reasons) - 1} more reasons in the table)" if len(reasons) > 1 else ""
        return (
            f"MLflow: {len(self.pending)} of {len(self.rows)} artifacts are not recorded yet: {reasons[0]}{more}. "
            "No result is lost; the next run, or `snakemake --cores 1 track`, records them."
        )


def ingest(
    results_dir: str | os.PathLike,
    artifacts: Iterable[str | os.PathLike],
    uri: str,
    *,
    name: str,
    config_digest: str,
    config: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Report:
    """Record every artifact that MLflow does not hold yet; returns the status of each, and raises nothing of MLflow's.

    ``artifacts`` are files, Parquet or others; their paths relative to ``results_dir`` name the steps. ``uri`` comes
    from ``resolve_uri``; ``config`` becomes the parent's parameters. About 40 ms a new artifact with sqlite.
    """
    steps, decided = _plan(Path(results_dir), artifacts)
    report = Report()
    try:
        with open_store(uri) as store:
            report.run_id = _parent(store, name, config_digest, config or {})
            recorded = _record_all(store, report.run_id, config_digest, steps, progress=progress)
            report.rows = decided + recorded
            if not report.pending:
                store.client.set_terminated(report.run_id, "FINISHED")
    except Exception as error:  # the record must never cost a result: whatever MLflow raises leaves the steps pending
        report.rows = decided + [row for step in steps for row in _rows(step, "pending", reason(error))]
    report.rows.sort(key=lambda row: row["artifact"])
    return report


def next_attempt(path: str | os.PathLike) -> str:
    """Return a token that changes exactly when the last recording left something pending.

    As a rule's parameter it makes Snakemake run the rule again until nothing is pending, and not once more: a finished
    recording keeps the token it was started with (in its provenance, with the count pending). Cost: one small footer.
    """
    try:
        last = read_provenance(path)
        return f"attempt {int(last['attempt'].split()[-1]) + bool(last['metrics']['pending'])}"
    except (ArtifactError, KeyError, ValueError):
        return "attempt 1"


def _plan(results: Path, artifacts: Iterable[str | os.PathLike]) -> tuple[list[Step], list[dict[str, Any]]]:
    """Sort files into steps (tables with their figures, then figures without a table) and rows already decided."""
    paths = sorted({Path(path) for path in artifacts}, key=lambda path: (path.suffix != ".parquet", path))
    tables = {path.with_suffix("") for path in paths if path.suffix == ".parquet"}
    steps: list[Step] = []
    rows: list[dict[str, Any]] = []
    for path in paths:
        artifact = os.path.relpath(path, results)
        if path.suffix == ".parquet":
            drawn = tuple(p for p in paths if p.suffix in ATTACHED and p.with_suffix("") == path.with_suffix(""))
            try:
                steps.append(Step(artifact, path, read_provenance(path), digest(path), drawn))
            except (ArtifactError, json.JSONDecodeError) as error:
                rows += _rows(Step(artifact, path, {}, "", drawn), "pending", reason(error))
        elif path.suffix not in ATTACHED:
            rows += _rows(Step(artifact, path, {}, ""), "left out", "kept on disk; its table holds the sha256")
        elif path.with_suffix("") not in tables:
            steps.append(Step(artifact, path, {}, ""))
    return steps, rows


def _rows(step: Step, status: str, why: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of a step: its table and every file drawn from it share one status."""
    folder = Path(step.artifact).parent
    return [
        {
            "artifact": artifact,
            "rule": step.provenance.get("rule"),
            "digest": step.digest or None,
            "status": status,
            "reason": why,
        }
        for artifact in [step.artifact, *(str(folder / file.name) for file in step.files)]
    ]


def _parent(store: Store, name: str, config_digest: str, config: Mapping[str, Any]) -> str:
    """Return the run of this configuration, reopened or new; the earliest one when a race made two."""
    found = [
        run
        for run in _search(store, f"tags.`{CONFIG}` = '{config_digest}'")
        if PARENT not in run.data.tags and run.data.tags.get(NAME) == name
    ]
    if found:
        run = min(found, key=lambda run: (run.info.start_time, run.info.run_id))
        store.client.update_run(run.info.run_id, status="RUNNING")
    else:
        tags = {NAME: name, CONFIG: config_digest, "stopwise.version": __version__}
        run = store.client.create_run(store.experiment_id, tags=tags, run_name=f"{name} {config_digest[:12]}")
    _log_batch(store, run, params=flatten(config))
    return run.info.run_id


def _record_all(
    store: Store, parent: str, config_digest: str, steps: Sequence[Step], *, progress: bool
) -> list[dict[str, Any]]:
    """Record step by step; once the store is unavailable the rest is pending at once."""
    from tqdm import tqdm

    children: dict[str, dict[str, Any]] = {}
    for run in _search(store, f"tags.`{PARENT}` = '{parent}'"):
        children.setdefault(run.data.tags.get(ARTIFACT, ""), {})[run.data.tags.get(DIGEST, "")] = run
    rows: list[dict[str, Any]] = []
    down: str | None = None
    for step in tqdm(steps, desc="MLflow", unit="artifact", disable=not progress):
        if down:
            rows += _rows(step, "pending", down)
            continue
        try:
            if step.provenance:
                why = _record(store, parent, config_digest, step, children.get(step.artifact, {}))
            else:
                run = store.client.get_run(parent)
                tags, why = _attach(store, run, [step.path], safe_key(str(Path(step.artifact).parent)))
                _log_batch(store, run, tags=tags)
            rows += _rows(step, "recorded", why)
        except Exception as error:  # one step that MLflow refuses leaves the others their chance
            rows += _rows(step, "pending", reason(error))
            down = reason(error) if is_unavailable(error) else None
    commits = [step.volatile["git"] for step in steps if step.volatile.get("git")]
    if commits and not down:
        store.client.set_tag(parent, COMMIT, cut(str(commits[-1]), TAG_LENGTH))
    return rows


def _record(store: Store, parent: str, config_digest: str, step: Step, known: Mapping[str, Any]) -> str | None:
    """Record one step, or complete it; returns a remark about files that were left on disk."""
    client, run = store.client, known.get(step.digest)
    started, ended = times_of(step)
    if run is None:
        tags = tags_of(step, parent, config_digest)
        run = client.create_run(store.experiment_id, start_time=started, tags=tags, run_name=step.title)
    complete = run.info.status == "FINISHED"
    tag = safe_key(FILE + step.path.name)
    # The table of a finished run is the one that was uploaded: its digest is how the run was found.
    new = [path for path in (step.path, *step.files) if not (complete and path == step.path and tag in run.data.tags)]
    tags, why = _attach(store, run, new)
    if complete:
        _log_batch(store, run, tags=tags)
    else:
        tags |= _show(store, run, step)
        metrics = [*metrics_of(step, run), *curves_of(step, run)]
        _log_batch(store, run, params=params_of(step), metrics=metrics, tags=tags)
        client.log_inputs(run.info.run_id, datasets=inputs_of(step))
    _supersede(client, run, known)
    if not complete:
        client.set_terminated(run.info.run_id, "FINISHED", end_time=ended)
    return why


def _show(store: Store, run: Any, step: Step) -> dict[str, str]:
    """Upload a small table as one that MLflow shows, in the file of its ``log_table``; returns the tag to be set.

    ``log_table`` itself would look for a table to append to, and read and set the tag: half of a step's time.
    """
    data, place = shown_table(step), f"{step.path.stem}.json"
    if data is None or step.path.with_suffix(".json") in step.files:
        return {}
    import pandas as pd  # which MLflow has imported

    store.client.log_text(run.info.run_id, pd.DataFrame(data).to_json(orient="split", index=False), place)
    return {SHOWN: json.dumps([{"path": place, "type": "table"}])}


def _supersede(client: Any, run: Any, known: Mapping[str, Any]) -> None:
    """Point the older runs of an artifact to the current one; the current one points nowhere."""
    if SUPERSEDED in run.data.tags:
        client.delete_tag(run.info.run_id, SUPERSEDED)
    for other in known.values():
        if other.info.run_id != run.info.run_id and other.data.tags.get(SUPERSEDED) != run.info.run_id:
            client.set_tag(other.info.run_id, SUPERSEDED, run.info.run_id)
            if other.info.status != "FINISHED":
                client.set_terminated(other.info.run_id, "KILLED")


def _attach(
    store: Store, run: Any, files: Sequence[Path], folder: str | None = None
) -> tuple[dict[str, str], str | None]:
    """Upload small files that changed since they were uploaded; returns the tags that hold their digests, and a remark.

    The tags are to be set after the uploads, so that a recording that is cut off between uploads again.
    """
    large = [file.name for file in files if file.stat().st_size > LARGEST_FILE]
    tags = {}
    for file in files:
        if file.name in large:
            continue
        place = f"{folder}/{file.name}" if folder else file.name
        tag, current = safe_key(FILE + place), hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        if run.data.tags.get(tag) != current:
            store.client.log_artifact(run.info.run_id, str(file), folder)
            tags[tag] = current
    return tags, f"over {LARGEST_FILE // 1_000_000} MB, kept on disk: {', '.join(large)}" if large else None


def _log_batch(
    store: Store,
    run: Any,
    params: Mapping[str, str] | None = None,
    metrics: Sequence[Any] = (),
    tags: Mapping[str, str] | None = None,
) -> None:
    """Log in as few batches as MLflow allows; parameters that a run has already are immutable and left alone."""
    from mlflow.entities import Param, RunTag

    new = [Param(name, value) for name, value in (params or {}).items() if name not in run.data.params]
    set_first = [RunTag(name, value) for name, value in (tags or {}).items()]
    batches = max(-(-len(new) // PARAMS_PER_BATCH), -(-len(metrics) // METRICS_PER_BATCH), bool(set_first))
    for i in range(batches):
        store.client.log_batch(
            run.info.run_id,
            metrics=metrics[i * METRICS_PER_BATCH : (i + 1) * METRICS_PER_BATCH],
            params=new[i * PARAMS_PER_BATCH : (i + 1) * PARAMS_PER_BATCH],
            tags=set_first if i == 0 else (),
        )


def _search(store: Store, query: str) -> Iterator[Any]:
    token = None
    while True:
        page = store.client.search_runs([store.experiment_id], query, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
