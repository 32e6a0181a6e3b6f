"""`malcli label`: a mask for every box, in parts that shards, processes and restarts share.

No process waits for another: whoever finds all parts done merges them. torch is loaded only where
boxes are labelled, so that a finished job, a merge and a dry run answer at once.
"""

import dataclasses
import signal
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from malcli import files
from malcli.config.label import LabelConfig
from malcli.data.images.find import ImageFolder
from malcli.engine import inputs
from malcli.engine.label import job as jobs
from malcli.engine.label.estimate import estimate, remember_rate, warn_of_space
from malcli.engine.label.job import Job, Manifest
from malcli.engine.label.overlaps import settle_contested
from malcli.engine.label.parts import Outcome, PartFolder, merge, missing_error
from malcli.engine.label.result import LabelResult
from malcli.engine.label.retry import (
    identity,
    is_retry,
    kept_outcomes,
    reopen,
    retried_boxes,
    tell_retried,
)
from malcli.engine.label.settings import batch_size_of, checked_out, result_settings, share_of
from malcli.engine.label.siblings import Siblings
from malcli.engine.machine.clock import Clock
from malcli.engine.machine.signals import StopFlag, command_of
from malcli.errors import (
    ConfigError,
    DataFormatError,
    Interrupted,
    MalcliError,
    OutputError,
)
from malcli.model.locate import locate_checkpoint, name_of, preset_of, quality_of, usable_runs
from malcli.report.html import check_page
from malcli.report.progress import Progress, log

if TYPE_CHECKING:
    from malcli.engine.label.pipeline import Pipeline
    from malcli.model.checkpoint import Checkpoint


def label(config: LabelConfig) -> LabelResult:
    """Label boxes, or check them (`dry_run`), or merge finished parts (`merge`).

    Every annotation of the input is in the output, in order, with a status. Equal jobs give equal
    bytes, whatever the shards, processes and interruptions.

    Args:
        config: The settings.

    Returns:
        Counts by status; `merged` is false while parts of other shards are missing.

    Raises:
        MalcliError: A setting or file is wrong, or the output belongs to another job.
        RunError: The disk is full, or parts are missing in a merge.
        Interrupted: SIGINT or SIGTERM came; finished parts are kept.
    """
    settings = result_settings(config)
    share = share_of(config.shard)
    batch_size_of(config)
    if config.merge and config.retry_skipped:
        raise ConfigError("--retry-skipped labels boxes, which --merge does not; leave one out")
    if config.dry_run:
        # It decides nothing, so that it reports whatever number of images is missing.
        return _dry_run(dataclasses.replace(config, max_failures=1.0))
    with StopFlag() as stop:
        return _Start(config, settings, share, stop).run()


def _dry_run(config: LabelConfig) -> LabelResult:
    """Read everything, check every image's header, and count what would be labelled."""
    result = LabelResult()
    with Clock(result.seconds).cpu("read"):
        table, folder = inputs.open_data(config)
        result.counts = inputs.check_images(config, table, folder)
        result.estimate = estimate(config, table, result.counts, config.num_processes)
    result.problems = table.problems
    inputs.report_problems(table.problems)
    if config.strict:
        inputs.refuse_problems(table.path, table.problems)
    inputs.refuse_unusable(config.boxes, result.counts, table.problems)
    return result


class _Start:
    """One start of a job: does its share of what is left, and merges if nothing is left."""

    def __init__(
        self, config: LabelConfig, settings: dict[str, Any], share: slice, stop: StopFlag
    ) -> None:
        self.config = config
        self.settings = settings
        self.share = share
        self.stop = stop
        self._loaded: Checkpoint | None = None
        self._retried: tuple[int, ...] | None = None  # the output as it was before a retry
        self.out = checked_out(config)
        if config.report:
            check_page(config.report, [config.boxes, config.checkpoint], config.overwrite)
        self.result = LabelResult(out=self.out)
        self.clock = Clock(self.result.seconds)

    def run(self) -> LabelResult:
        job = self._job()
        if jobs.is_finished(self.out, job):
            counts = (jobs.read_stamp(self.out) or {}).get("counts", {})
            if not self.config.retry_skipped or not retried_boxes(counts):
                what = "retry" if self.config.retry_skipped else "label"
                log(f"{self.out}: this job was finished before; nothing to {what}")
                return self._finished(job)
            self._retried = identity(self.out)
            if not is_retry(self.out):
                jobs.remove_parts_of(self.out, job)  # left by a kill after the merge
        elif self.config.retry_skipped:
            log(f"{self.out}: not finished yet, which comes before --retry-skipped")
        manifest = jobs.find_unfinished(job, self.out, self.config.overwrite)
        if self.config.resume and manifest is None:
            log(f"{self.out}: nothing to resume; starting")
        folder = None
        with self.clock.cpu("read"):
            if self.config.merge:  # looks at no image
                table = inputs.open_table(self.config)
            else:
                table, folder = inputs.open_data(self.config)
            self.result.problems = table.problems
            if self.config.strict and folder:
                inputs.check_images(self.config, table, folder)
        inputs.report_problems(table.problems)
        if self.config.strict:
            inputs.refuse_problems(table.path, table.problems)
        inputs.refuse_unusable(self.config.boxes, inputs.statuses_of(table), table.problems)
        parts = PartFolder(jobs.parts_path(self.out), table)
        mine = [] if self.config.merge else list(range(len(parts)))[self.share]
        if manifest is None and self._retried:
            manifest = self._reopen(job, parts)
        if manifest is None and folder and (mine or not len(parts)):
            manifest = self._begin(job, parts, folder)
            if jobs.is_finished(self.out, job):
                log(f"{self.out}: another process has finished this job")
                return self._finished(job)
        if manifest is None:
            log("label: no part belongs to this share")
            return self.result
        self._check_plan(manifest, parts)
        parts.job = manifest.digest()
        return self._work(job, manifest, parts, mine, folder)

    def _work(
        self,
        job: Job,
        manifest: Manifest,
        parts: PartFolder,
        mine: list[int],
        folder: ImageFolder | None,
    ) -> LabelResult:
        """Label, merge, and tell from a failure that another process is the cause."""
        try:
            if folder:
                self._label(parts, mine, manifest, folder)
            return self._end(job, manifest, parts, mine)
        except (OSError, MalcliError) as error:
            # Another process of the job may have merged meanwhile, and removed the parts.
            merged = self._retried is None or self._retried != identity(self.out)
            if merged and jobs.is_finished(self.out, job):
                log(f"{self.out}: finished")
                return self._finished(job)
            if isinstance(error, OSError | OutputError):
                jobs.manifest_at_work(self.out, manifest)
            raise

    def _job(self) -> Job:
        """Return the job; an output of another job is refused."""
        config = self.config
        if config.merge:
            with self.clock.cpu("read"):
                job = jobs.job_to_merge(config, self.out)
            kept: dict[str, Any] = {
                n: job.settings.get(n) for n in ("categories", "limit", "format")
            } | {"exif": job.settings.get("exif", "auto")}
            self.config = dataclasses.replace(config, **kept)
            return job
        checkpoint = self.result.checkpoint = locate_checkpoint(config.checkpoint)
        self.result.quality = quality_of(checkpoint)
        if config.checkpoint is None:
            for run, why in usable_runs()[1].items():
                log(f"label: {run} is passed over: {why}; to take it: --checkpoint {run}")
        if files.is_same(checkpoint, self.out):
            raise OutputError(f"{self.out}: --out is also the checkpoint; name another")
        with self.clock.cpu("read"):
            job = jobs.job_of(config, self.settings, checkpoint)
        self._refuse_output(job)
        return job

    def _refuse_output(self, job: Job) -> None:
        """Raise OutputError if another job's output is there that is not to be replaced."""
        if not (self.config.overwrite or self.config.merge):
            jobs.refuse_other(job, jobs.read_stamp(self.out), self.out)

    def _finished(self, job: Job) -> LabelResult:
        """Return the counts that the output states; removes parts that a kill may have left."""
        jobs.remove_parts_of(self.out, job)
        self.result.merged = True
        self.result.counts = dict((jobs.read_stamp(self.out) or {}).get("counts", {}))
        self._refuse_bad(self.result.counts)
        tell_retried(self.config, self.result.counts)
        if self.config.review or self.config.report:
            from malcli.engine.label.review import write_extras

            write_extras(self.config, self.out, self.result.to_json(), self.result.problems)
            self.result.report = self.config.report
        return self.result

    def _check_plan(self, manifest: Manifest, parts: PartFolder) -> None:
        if (manifest.boxes, manifest.parts) != (parts.table.boxes.num_rows, len(parts)):
            raise OutputError(
                f"{parts.path}: planned by another version of malcli; finish it with that one, or "
                f"start anew with --overwrite"
            )

    def _begin(self, job: Job, parts: PartFolder, folder: ImageFolder) -> Manifest:
        """Decide what every start of the job will obey, and write it down."""
        from malcli.engine.label.batch_size import with_largest_batch
        from malcli.engine.label.plan import first_manifest

        try:
            with self.stop.at_once():  # automatic thresholds can take a minute
                checkpoint = self._checkpoint()
                warn_of_space(self.out, parts.table)
                manifest = first_manifest(self.config, job, parts, folder, checkpoint)
                manifest = with_largest_batch(self.config, manifest, checkpoint)
        except KeyboardInterrupt:
            self._stop_here(parts)
            raise
        manifest = jobs.write_manifest(self.out, manifest)
        try:
            self._refuse_output(job)  # one that ended since this start looked first
        except OutputError:
            jobs.remove_parts_of(self.out, job)
            raise
        return manifest

    def _reopen(self, job: Job, parts: PartFolder) -> Manifest:
        """Make the finished job an unfinished one that lacks the boxes to retry."""
        from malcli.engine.label.batch_size import with_largest_batch

        with self.clock.cpu("read"), self.stop.at_once():
            manifest = reopen(self.config, job, self.out, parts)
        return with_largest_batch(self.config, manifest, self._checkpoint())

    def _checkpoint(self) -> "Checkpoint":
        """Load the checkpoint once, and say which it is and what is known of its quality."""
        if self._loaded is None:
            from malcli.model.checkpoint import load_checkpoint

            assert self.result.checkpoint is not None
            self._loaded = load_checkpoint(self.result.checkpoint)
            quality = self._loaded.quality
            miou = (quality.get("miou") or {}).get("all")
            said = f"mIoU {miou:.3f} on {quality['data']}" if miou else "quality not measured"
            if preset_of(self.result.checkpoint):
                said += "; of the released code: its preset holds where you set nothing"
            log(f"label: checkpoint {name_of(self.result.checkpoint)} ({said})")
            for note in self._loaded.notes:
                log(f"label: {note}")
        return self._loaded

    def _label(
        self, parts: PartFolder, mine: list[int], manifest: Manifest, folder: ImageFolder
    ) -> None:
        """Label the parts of this share that are not done."""
        todo = parts.missing(mine)
        if not todo:
            return
        from malcli.engine.label.pipeline import open_pipeline

        loaded = self._checkpoint()
        pipeline = open_pipeline(self.config, manifest, loaded, parts.table, folder, self.clock)
        # All local processes together: only the first one's line is seen.
        shard = range(len(parts))[share_of(self.config.shard, {})]
        siblings = Siblings(parts, set(shard) - set(mine))
        total, own, left = (sum(len(parts.rows(i)) for i in some) for some in (shard, mine, todo))
        left -= sum(len(kept_outcomes(parts, index)) for index in todo)
        log(f"label: {len(parts.present())} of {len(parts)} parts are done, {len(todo)} left here")
        start = time.monotonic()
        try:
            with Progress(total, "boxes", "label", done=own - left + siblings.news()) as progress:
                for index in todo:
                    manifest = self._label_part(parts, index, manifest, pipeline, progress)
                    progress.advance(siblings.news())
                    self._stop_here(parts)
        finally:
            pipeline.close()
        self.result.labelled = (left, time.monotonic() - start)
        remember_rate(self.config, left, self.result.boxes_per_s)
        inputs.report_problems(parts.table.problems, inputs.FILE_KINDS)

    def _label_part(
        self,
        parts: PartFolder,
        index: int,
        manifest: Manifest,
        pipeline: "Pipeline",
        progress: Progress,
    ) -> Manifest:
        """Label and commit a part; return the manifest, with a smaller batch if memory ran out."""
        kept = kept_outcomes(parts, index)
        rows = parts.rows(index)
        rows = rows[~np.isin(rows, [one.row for one in kept])]
        while (outcomes := self._outcomes(parts, rows, manifest, pipeline, progress)) is None:
            smaller = max(1, manifest.batch_size // 2)
            log(f"label: {manifest.batch_size} crops a batch need too much memory; now {smaller}")
            manifest = jobs.with_batch_size(self.out, manifest, smaller)
        outcomes += kept
        if self.config.overlaps != "keep":
            with self.clock.cpu("paste"):
                images = parts.table.take(np.array([one.row for one in outcomes]), "image")
                outcomes = settle_contested(
                    outcomes, images["image"].to_pylist(), self.config.overlaps
                )
        with self.clock.cpu("write"):
            jobs.manifest_at_work(self.out, manifest)
            parts.write(index, outcomes)
        return manifest

    def _outcomes(
        self,
        parts: PartFolder,
        rows: NDArray[np.int64],
        manifest: Manifest,
        pipeline: "Pipeline",
        progress: Progress,
    ) -> list[Outcome] | None:
        """Return what became of a part's boxes, or None if a batch does not fit into memory."""
        import torch

        outcomes: list[Outcome] = []
        try:
            with self.stop.at_once():  # one batch of a large network can take a minute on a CPU
                for batch in pipeline.label(rows, manifest.batch_size):
                    outcomes += batch
                    progress.advance(len(batch))
            return outcomes
        except KeyboardInterrupt:
            self._stop_here(parts)
            raise
        except torch.OutOfMemoryError:
            progress.advance(-len(outcomes))
            return None

    def _stop_here(self, parts: PartFolder) -> None:
        """Raise Interrupted if a signal came."""
        if self.stop.signum:
            name = signal.Signals(self.stop.signum).name
            said = f"stopped by {name}; finished parts are kept in {parts.path}; resume with: "
            raise Interrupted(said + command_of(self.config, "label"), self.stop.signum)

    def _end(self, job: Job, manifest: Manifest, parts: PartFolder, mine: list[int]) -> LabelResult:
        """Merge if all parts are there; else count this share's boxes."""
        missing = parts.missing()
        if missing and self.config.merge:
            raise missing_error(parts.path, missing, len(parts))
        if missing:
            self.result.counts = parts.count(mine)
            log(f"label: this share is done; {len(missing)} of {len(parts)} parts are not")
            return self.result
        with self.clock.cpu("write"):
            counts = parts.count()
            self._refuse_bad(counts)
            self._refuse_unusable(parts, counts)
            stamp = jobs.stamp_of(job, manifest, counts)
            merge(parts, self.out, stamp, lambda: self._stop_here(parts))
        log(f"{self.out}: finished")
        return self._finished(job)

    def _refuse_unusable(self, parts: PartFolder, counts: dict[str, int]) -> None:
        """Raise DataFormatError if no box was labelled; without parts the job can be done anew."""
        try:
            inputs.refuse_unusable(self.config.boxes, counts, parts.table.problems)
        except DataFormatError:
            jobs.remove_parts(self.out)
            raise

    def _refuse_bad(self, counts: dict[str, int]) -> None:
        """Raise DataFormatError, with `strict`, if an image turned out bad while labelling."""
        bad = {status: counts[status] for status in inputs.BAD_STATUSES if counts.get(status)}
        if self.config.strict and bad:
            said = ", ".join(f"{count} boxes {status}" for status, count in bad.items())
            raise DataFormatError(self.config.boxes, f"--strict: {said}; without it they are kept")
