"""What processes exchange; with several of them it is in tests/integration/test_two_processes.py."""

from torch import nn

from ode_detect.engine import distributed


def test_alone_nothing_is_exchanged() -> None:
    model = nn.Linear(2, 1)
    distributed.average_gradients(model)
    distributed.broadcast_state(model)
    assert model.weight.grad is None
    assert distributed.averaged({"a": 2.0}) == {"a": 2.0}
    assert distributed.agreed(True)
    assert not distributed.agreed(False)
    assert distributed.from_main(lambda: 3) == 3
    assert distributed.first_to_report()
