"""A run's logs: CSV and TensorBoard files, a line on the screen, the report. Rank 0 keeps them.

    OUT/steps.csv    every --log-every steps: epoch, step, loss, metrics, lr, images_per_s, wait_share
    OUT/epochs.csv   every epoch, and before the first: means over the epoch, knn, logistic, routed, skipped, seconds
    OUT/tensorboard  tensorboard --logdir OUT
    OUT/report.html  all of it in one page

images_per_s counts source images, each with all its views; knn and logistic are the per cent of validation images whose
class each of them finds, logistic_train that of the crops which the regression was fitted to; routed is the share of
views that Albumentations finished, because the executor has no code for an operation in them; skipped is how many
images rank 0 has found broken so far (--on-error skip). Every line is on the disk as soon as it is written, and a
resumed run first takes back the lines after its checkpoint, so none is there twice.
"""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from penstock.augment import Recipe
from penstock.engine.csv_log import CsvLog, Row
from penstock.engine.report import save_views, write_report
from penstock.engine.screen import Screen
from penstock.loaders import Views


class RunLog:
    """All the logs of a run.

    Args:
        out: the run's folder; config.json lies in it already.
        recipe: how its views are made.
        metrics: what the method reports beside its loss.
        epochs, steps: of the whole run, for the progress bar.
        resumed: (epochs that were over, steps taken) at the checkpoint from which the run goes on, or None.
    """

    def __init__(
        self,
        out: Path,
        *,
        recipe: Recipe,
        metrics: tuple[str, ...],
        epochs: int,
        steps: int,
        resumed: tuple[int, int] | None,
    ) -> None:
        self.out, self.recipe = out, recipe
        epoch, step = resumed or (None, None)
        shared = ["epoch", "step", "loss", *metrics]
        speed = ["images_per_s", "wait_share"]
        self.steps = CsvLog(out / "steps.csv", [*shared, "lr", *speed], key="step", keep=step)
        found, seconds = ["knn", "logistic", "logistic_train"], ["train_seconds", "knn_seconds", "logistic_seconds"]
        columns = [*shared, *found, *speed, "routed", "skipped", *seconds]
        self.epochs = CsvLog(out / "epochs.csv", columns, key="epoch", keep=epoch)
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=None if step is None else step + 1)
        self.screen = Screen(epochs=epochs, steps=steps, done=step or 0)

    def first_batch(self, views: Views) -> None:
        save_views(views, self.recipe, self.out / "views.png")

    def log_steps(self, row: Row) -> None:
        self.steps.write(row)
        self._chart("train", row)
        self.screen.show(row)

    def log_epoch(self, row: Row) -> None:
        self.epochs.write(row)
        self._chart("epoch", row)
        self.screen.epoch_over(row)
        write_report(self.out)

    def _chart(self, group: str, row: Row) -> None:
        for name, value in row.items():
            if name != "step":
                self.board.add_scalar(f"{group}/{name}", value, int(row["step"]))
        self.board.flush()

    def close(self) -> None:
        self.steps.close()
        self.epochs.close()
        self.board.close()
        self.screen.close()
