import copy

import pytest
import torch
from torch import nn

from ode_detect.ode.refitting.distillation import distil
from ode_detect.ode.refitting.refit import project_pieces

from ..small_flows import model, outputs, pictures, same, states

KINDS = ["piecewise", "hat"]


@pytest.mark.parametrize("kind", KINDS)
def test_distillation_brings_the_outputs_nearer(kind):
    teacher = model(4, flows=2)
    student = copy.deepcopy(teacher)
    project_pieces(student, pictures(), count=2, kind=kind)
    expected, before = outputs(teacher, pictures()), outputs(student, pictures())
    losses = distil(student, teacher, pictures(), iterations=40, learning_rate=3e-3)
    assert len(losses) == 40
    assert losses[-1] < 0.5 * losses[0]
    after = outputs(student, pictures())
    assert (after - expected).norm() < 0.8 * (before - expected).norm()


def test_only_the_flows_of_the_student_are_trained():
    teacher = model(3, flows=2).train()
    student = copy.deepcopy(teacher)
    project_pieces(student, pictures(), count=1)
    student[0].weight.grad = torch.ones_like(student[0].weight)
    kept, before, random = states(teacher), states(student), torch.get_rng_state()
    distil(student, teacher, pictures(), iterations=2)
    assert torch.equal(torch.get_rng_state(), random)
    assert same(states(teacher), kept)
    assert all(p.grad is None for p in teacher.parameters())
    assert all(m.training and not m._forward_hooks for m in (*teacher.modules(), *student.modules()))
    parameters = {name for name, _ in student.named_parameters()}
    moved = {name for name, x in states(student).items() if not torch.equal(x, before[name])}
    assert moved == {name for name in parameters if not name.startswith("0.")}
    assert bool((student[0].weight.grad == 1).all())
    assert all(p.grad is None for p in student[1:].parameters())


def test_distillation_is_repeatable():
    teacher = model(3)
    student = copy.deepcopy(teacher)
    project_pieces(student, pictures(), count=1)
    students = [copy.deepcopy(student) for _ in range(3)]
    seeds = (1, 1, 2)
    runs = [distil(s, teacher, pictures(4), iterations=6, seed=k) for s, k in zip(students, seeds, strict=True)]
    assert runs[0] == runs[1] != runs[2]
    assert same(states(students[0]), states(students[1]))


def test_under_autocast_each_iteration_sees_the_weights_of_the_one_before():
    teacher = model(4)
    student = copy.deepcopy(teacher)
    project_pieces(student, pictures(), count=2)
    plain = copy.deepcopy(student)
    expected, before = outputs(teacher, pictures()), outputs(student, pictures())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = distil(student, teacher, pictures(), iterations=40, learning_rate=3e-3)
    assert losses == pytest.approx(distil(plain, teacher, pictures(), iterations=40, learning_rate=3e-3), rel=0.1)
    assert (outputs(student, pictures()) - expected).norm() < 0.8 * (before - expected).norm()


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    teacher = model(3)
    assert distil(copy.deepcopy(teacher), teacher, pictures(), iterations=2) == [0.0, 0.0]


def test_what_cannot_be_distilled_says_what_to_do():
    teacher = model(3)
    with pytest.raises(ValueError, match="not 0 and 5"):
        distil(copy.deepcopy(teacher), teacher, [], iterations=5)
    with pytest.raises(ValueError, match="not 2 and 0"):
        distil(copy.deepcopy(teacher), teacher, pictures(), iterations=0)
    with pytest.raises(ValueError, match="take a copy of the model from before"):
        distil(teacher, teacher, pictures(), iterations=1)
    with pytest.raises(ValueError, match=r"the flows of the model \(1, 2\).*teacher \(1\)"):
        distil(model(3, flows=2), teacher, pictures(), iterations=1)
    with pytest.raises(ValueError, match="all are frozen"):
        distil(copy.deepcopy(teacher).requires_grad_(False), teacher, pictures(), iterations=1)


def test_a_flow_that_is_not_run_is_named_and_gradients_come_back():
    class Half(nn.Module):
        """Runs its second flow for large batches only."""

        def __init__(self):
            super().__init__()
            self.all = model(3, flows=2)

        def forward(self, x):
            return self.all(x) if len(x) > 2 else self.all[:2](x)

    teacher = Half()
    student = copy.deepcopy(teacher)
    for parameter in student.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    batches = [pictures()[0], pictures()[1][:2]]
    with pytest.raises(ValueError, match=r"the teacher did not run all\.2; call it with what runs all"):
        distil(student, teacher, batches, iterations=4)
    assert all(bool((p.grad == 3).all()) for p in student.parameters())
    assert not any(m._forward_hooks for m in student.modules())
    with pytest.raises(ValueError, match=r"did not run all\.2"):
        distil(student, teacher, batches[1:], iterations=1)
