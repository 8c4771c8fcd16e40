"""Inside other people's trainers, where installed, and called as those call everywhere."""

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from latewood.optim import CSGD, AdaBound, AvaGrad

CASES = [
    (AvaGrad, {"lr": 0.5, "eps": 0.1}),
    (AdaBound, {"lr": 1e-2, "final_lr": 0.3}),
    (CSGD, {"lr": 0.3, "momentum": 0.9}),
]
X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


class Classifier(nn.Module):
    """The calling convention of transformers: a loss and logits from keywords."""

    def __init__(self):
        super().__init__()
        self.layers = network()

    def forward(self, x, labels):
        logits = self.layers(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return {"x": X[index], "labels": Y[index]}


def same_weights(first, second):
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def loss_of(layers):
    return F.cross_entropy(layers(X), Y).item()


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
@pytest.mark.parametrize("passed", ["class", "instance"])
@pytest.mark.parametrize(("optimizer_class", "options"), CASES)
def test_the_trainer_of_transformers_trains_and_resumes(optimizer_class, options, passed, tmp_path):
    from transformers import Trainer, TrainingArguments

    def trainer(model, folder):
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=24,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            max_grad_norm=1.0,
            lr_scheduler_type="cosine",
            warmup_steps=4,
            save_steps=12,
            learning_rate=options["lr"],
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            seed=0,
        )
        given = {"optimizer_cls_and_kwargs": (optimizer_class, options)}
        if passed == "instance":
            given = {"optimizers": (optimizer_class(model.parameters(), **options), None)}
        return Trainer(model=model, args=arguments, train_dataset=Rows(), **given)

    straight, resumed = Classifier(), Classifier()
    before = loss_of(straight.layers)
    trainer(straight, tmp_path / "run").train()
    assert loss_of(straight.layers) < 0.9 * before
    checkpoint = tmp_path / "run" / "checkpoint-12"
    trainer(resumed, tmp_path / "other").train(resume_from_checkpoint=str(checkpoint))
    same_weights(straight, resumed)


def lightning_module(lightning, optimizer_class, options, manual):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layers = network()
            self.automatic_optimization = not manual

        def training_step(self, batch, index):
            loss = F.cross_entropy(self.layers(batch["x"]), batch["labels"])
            if not manual:
                return loss
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, 1.0, "norm")
            optimizer.step()
            self.lr_schedulers().step()
            return None

        def configure_optimizers(self):
            optimizer = optimizer_class(self.parameters(), **options)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options["lr"], 40)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    return Module()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(
    importlib.util.find_spec("lightning") is None, reason="lightning is not installed"
)
@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize(("optimizer_class", "options"), CASES)
def test_lightning_trains_and_resumes(optimizer_class, options, manual, tmp_path):
    import lightning

    def fit(model, epochs, checkpoint=None):
        accumulate = {} if manual else {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, **accumulate,
        )  # fmt: skip
        batches = torch.utils.data.DataLoader(Rows(), batch_size=8)
        trainer.fit(model, batches, ckpt_path=checkpoint)
        return trainer

    straight, halfway, resumed = (
        lightning_module(lightning, optimizer_class, options, manual) for _ in range(3)
    )
    before = loss_of(straight.layers)
    fit(straight, 4)
    assert loss_of(straight.layers) < 0.9 * before
    fit(halfway, 2).save_checkpoint(tmp_path / "half.ckpt")
    fit(resumed, 4, tmp_path / "half.ckpt")
    same_weights(straight.layers, resumed.layers)


def batches():
    return torch.utils.data.DataLoader(Rows(), batch_size=8)


def plainly(optimizer_class, options, epochs=3, groups=nn.Module.parameters):
    model = network()
    optimizer = optimizer_class(groups(model), **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8 * epochs)
    for _ in range(epochs):
        for batch in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(batch["x"]), batch["labels"]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model


def decay_apart(model):
    """The two groups of a trainer that keeps weight decay away from biases."""
    named = list(model.named_parameters())
    return [
        {"params": [p for n, p in named if not n.endswith("bias")], "weight_decay": 0.01},
        {"params": [p for n, p in named if n.endswith("bias")], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize(("optimizer_class", "options"), CASES)
def test_the_wrapper_of_accelerate_changes_nothing(optimizer_class, options):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    raw = network()
    optimizer = optimizer_class(decay_apart(raw), **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)
    model, optimizer, schedule = accelerator.prepare(raw, optimizer, schedule)
    for _ in range(3):
        for batch in batches():
            for part in (0, 1):
                with accelerator.accumulate(model):
                    rows = slice(4 * part, 4 * part + 4)
                    loss = F.cross_entropy(model(batch["x"][rows]), batch["labels"][rows])
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
    expected = plainly(optimizer_class, options, groups=decay_apart)
    for a, b in zip(raw.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("optimizer_class", "options"), CASES)
def test_a_closure_that_does_the_whole_step(optimizer_class, options):
    """Forward, zeroing, backward and clipping happen inside, and hooks wrap the step twice."""
    model = network()
    optimizer = optimizer_class(model.parameters(), **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)
    for _ in range(3):
        for batch in batches():

            def closure(batch=batch):
                loss = F.cross_entropy(model(batch["x"]), batch["labels"])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                return loss.detach()

            before = F.cross_entropy(model(batch["x"]), batch["labels"]).detach()
            assert torch.equal(optimizer.step(closure=closure), before)
            schedule.step()
    same_weights(model, plainly(optimizer_class, options))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
@pytest.mark.parametrize(("optimizer_class", "options"), CASES)
def test_a_wrapper_that_takes_over_the_class_and_the_attributes(optimizer_class, options):
    """Wrappers that pose as a subclass copy what lies in the instance, hooks included."""
    model = network()
    optimizer = optimizer_class(model.parameters(), **options)
    pose = type("Posing" + optimizer_class.__name__, (optimizer_class,), {})
    wrapped = object.__new__(pose)
    wrapped.__dict__.update(optimizer.__dict__)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)
    for _ in range(3):
        for batch in batches():
            wrapped.zero_grad()
            F.cross_entropy(model(batch["x"]), batch["labels"]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            wrapped.step()
            schedule.step()
    same_weights(model, plainly(optimizer_class, options))
    state = copy.deepcopy(optimizer.state_dict())
    assert wrapped.state_dict().keys() == state.keys()
