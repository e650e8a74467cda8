"""Shared by the test modules: small models, images with known facets, and fingerprints."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores; NumPy reads it when it is imported
os.environ["HF_HUB_OFFLINE"] = "1"  # tests download nothing

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import captum_mfv as mfv

torch.set_num_threads(1)

SPEC = mfv.InputSpec(32)
DATA = Path(os.environ.get("MFV_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium isn't installed")
posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and signals of POSIX")
needs_data = pytest.mark.skipif(not (DATA / "bell_pepper").is_dir(), reason=f"research data not in {DATA}")
needs_pickles = pytest.mark.skipif(torch.__version__ < "2.10", reason="this PyTorch's pickles are refused")


def small_cnn(seed: int = 0) -> nn.Sequential:
    """Return a CNN with in-place ReLUs, batch norm and dropout, which a careless capture would change."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential()
        model.add_module("conv1", nn.Conv2d(3, 12, 5, 2, 2))
        model.add_module("bn1", nn.BatchNorm2d(12))
        model.add_module("relu1", nn.ReLU(inplace=True))
        model.add_module("conv2", nn.Conv2d(12, 24, 3, 2, 1))
        model.add_module("relu2", nn.ReLU(inplace=True))
        model.add_module("drop", nn.Dropout(0.5))
        model.add_module("pool", nn.AdaptiveAvgPool2d(1))
        model.add_module("flatten", nn.Flatten())
        model.add_module("fc", nn.Linear(24, 5))
    return model.eval()


def planted_images(n_each: int = 20, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Return three kinds of 32-pixel images with noise: red discs, green stripes, blue checks."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    shapes = (
        ((x**2 + y**2) < 0.4).float(),
        (torch.sin(12 * x) > 0).float(),
        ((torch.sin(10 * x) * torch.sin(10 * y)) > 0).float(),
    )
    images, labels = [], []
    for kind, shape in enumerate(shapes):
        for _ in range(n_each):
            image = 0.1 * torch.rand(3, 32, 32, generator=generator)
            image[kind] += 0.7 * shape + 0.2 * torch.rand(1, generator=generator)
            images.append(image.clamp(0, 1))
            labels.append(kind)
    return torch.stack(images), np.array(labels)


class Keyed:
    """Images without a fingerprint, which need a key."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


class Failing:
    """A forward hook that raises an error after a number of calls."""

    def __init__(self, error: BaseException, after: int) -> None:
        self.error, self.left = error, after

    def __call__(self, *args: object) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error


def fingerprint(model: nn.Module) -> dict[str, object]:
    """Return all state of a model and of the process that a call must not change."""
    hooks = [name for name in vars(nn.Module()) if name.endswith("hooks")]
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "hooks": [[len(getattr(module, name)) for name in hooks] for module in model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": json.dumps(np.random.get_state()[1].tolist()),  # noqa: NPY002
        "random": hash(random.getstate()),
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture
def model() -> nn.Module:
    return small_cnn()


@pytest.fixture
def unchanged(model):
    """Assert that the test changes neither the model nor the random state."""
    model.train()
    model.conv1.weight.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    before = fingerprint(model)
    yield
    after = fingerprint(model)
    assert [key for key in before if not same(before[key], after[key])] == []


@pytest.fixture(scope="session")
def planted() -> tuple[Tensor, np.ndarray]:
    return planted_images()


@pytest.fixture(scope="session")
def facets(planted) -> mfv.FacetSet:
    return mfv.find_facets(small_cnn(), mfv.Unit("fc", 1), planted[0], n_facets=3, input_spec=SPEC)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def tab(browser):
    """Return one browser page for all tests, because each new page starts a process."""
    page = browser.new_page()
    page.set_default_timeout(10_000)
    return page


@pytest.fixture
def visit(browser, tab):
    """Open pages; assert that there are no console messages, no dialogs, and only requests for the page's own files."""
    pages, messages, requests, allowed = [], [], [], []
    listeners = {
        "console": lambda message: messages.append(message.text),
        "pageerror": lambda error: messages.append(str(error)),
        "dialog": lambda dialog: messages.append(dialog.message),
        "request": lambda request: requests.append(request.url),
    }

    def visit(path, width=1440, scheme="light", state="", **options):
        page = browser.new_page(**options) if options else tab
        pages.append(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for event, listener in listeners.items():
            page.on(event, listener)
        page.goto("about:blank")  # another state of the same page would not load it
        page.goto(path.as_uri() + state)
        allowed.append(path.parent.as_uri() + "/" if path.name == "index.html" else path.as_uri())
        return page

    yield visit
    for page in pages:
        for event, listener in listeners.items():
            page.remove_listener(event, listener)
        if page is not tab:
            page.close()
    assert messages == []
    assert [url for url in requests if not url.startswith(("data:", "about:", *allowed))] == []


def accessibility() -> Callable[..., list[tuple[str, list[str]]]]:
    """Return a function of a browser page that lists the violations of all of axe's rules, or of the given ones."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def violations(page, *rules):
        options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
        found = axe.run(page, options=options).response  # other results are not listed in full
        assert found["passes"]
        return [(one["id"], [node["target"] for node in one["nodes"]]) for one in found["violations"]]

    return violations


def blocked_by_policy(browser, path: Path) -> tuple[list[str], str]:
    """Try what the policy refuses; return the refusing directives, and the type of the variable that a script sets."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(path.as_uri())
    page.evaluate("""() => {
        window.refused = [];
        document.addEventListener("securitypolicyviolation", event => refused.push(event.effectiveDirective));
        document.body.append(Object.assign(new Image(), {src: "http://127.0.0.1:9/beacon.png"}));
        document.body.append(Object.assign(document.createElement("script"), {textContent: "hacked = 1"}));
        fetch("http://127.0.0.1:9/").catch(() => 0);
    }""")
    page.wait_for_function("() => refused.length >= 3")
    found = sorted(page.evaluate("refused")), page.evaluate("typeof hacked")
    context.close()
    return found
