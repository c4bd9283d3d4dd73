"""Every method of the menu trains in a forward-only Trainer, or says why it does not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import zograd as zo
from tests.hf.helpers import Forward, arguments, digest, llama, losses, rows
from zograd.methods.menu import MENU

REFUSED = {
    "node_perturbation": "needs the loss of each example, and a Trainer gives their mean",
    "hozo": "is not in PositiveOrthant",
    "fd_fista": "a step would cost 27361 evaluations",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this step changed:UserWarning")
@pytest.mark.parametrize("name", zo.methods.names(blocks=True))
def test_a_method_of_the_menu_takes_two_steps(name: str, tmp_path: Path) -> None:
    method = MENU[name].build(**MENU[name].example) if zo.methods.describe(name)["required"] else name
    model = llama()
    before = digest(model)
    trainer = Forward(model=model, args=arguments(tmp_path, max_steps=2), train_dataset=rows(), method=method, lr=None)
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            trainer.train()
        assert digest(model) == before
        return
    trainer.train()
    assert len(trainer._zo.records) == 2
    assert all(map(math.isfinite, losses(trainer)))
