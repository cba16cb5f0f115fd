import pytest
import torch

from ode_detect.studies.benchmark import export

for package in export.REQUIRED:
    pytest.importorskip(package)


def test_onnxruntime_and_pytorch_classify_alike() -> None:
    (case,) = export.cases(quick=True)
    (theirs,), ours = case.sides["onnxruntime"].run(), case.sides["PyTorch"].run()
    assert ours.shape == (1, 1000)
    torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-4)
    assert case.sides["onnxruntime"].metrics["output_difference"] <= 1e-4
    assert [ratio.aim for ratio in case.ratios] == [None, 1e-4]
