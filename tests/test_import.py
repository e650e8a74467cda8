import subprocess
import sys

import captum_mfv


def python(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)


def test_importing_imports_neither_lucent_nor_kornia_nor_torchvision():
    everything = """
import sys
import captum_mfv
from captum_mfv.optvis import initializer, objectives, optimizers, param, recipes, render, transform
for name in captum_mfv.__all__:
    getattr(captum_mfv, name)
print([name for name in ("lucent", "kornia", "torchvision") if name in sys.modules])
"""
    done = python(everything)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_first_import_is_light():
    done = python("import captum_mfv, sys; print('torch' in sys.modules, captum_mfv.__version__)")
    assert done.stdout.split() == ["False", captum_mfv.__version__]


def test_the_public_names_are_these_and_no_other_exists():
    assert sorted(captum_mfv.__all__) == dir(captum_mfv) == captum_mfv.__all__
    assert not hasattr(captum_mfv, "nothing")
