"""Readers of sparse autoencoders: each format gives the latents of its library, and the command runs on them."""

import json
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from conftest import needs_pickles
from safetensors.torch import save_file
from torch import nn

from captum_mfv import RunFolder, Unit, find_facets, models
from captum_mfv.cli import main
from captum_mfv.datasets import planted_images, planted_network
from captum_mfv.errors import MFVWarning, ModelError
from captum_mfv.images import to_pil
from captum_mfv.jobs import RunSettings, run
from captum_mfv.models.sae import SparseEncoder
from captum_mfv.optvis.render import render_facets
from captum_mfv.storage.identity import weights_fingerprint

N_CHANNELS, N_LATENTS, K = 6, 20, 3


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


X = 2 * draw(40, N_CHANNELS)
WEIGHTS = {
    "W_enc": draw(N_CHANNELS, N_LATENTS),
    "b_enc": draw(N_LATENTS),
    "W_dec": draw(N_LATENTS, N_CHANNELS),
    "b_dec": draw(N_CHANNELS),
}
THRESHOLD = draw(N_LATENTS, seed=1).abs()
GATED = {"b_gate": draw(N_LATENTS, seed=2), "b_mag": draw(N_LATENTS, seed=3), "r_mag": draw(N_LATENTS, seed=4)}


def before(x, subtract=True):
    return (x - WEIGHTS["b_dec"] * subtract) @ WEIGHTS["W_enc"] + WEIGHTS["b_enc"]


def top_k(p):
    kept = p >= p.topk(K, dim=-1).values[:, -1:]
    return torch.where(kept, p.relu(), 0)


def gated(x):
    centered = x - WEIGHTS["b_dec"]
    magnitudes = centered @ (WEIGHTS["W_enc"] * GATED["r_mag"].exp()) + GATED["b_mag"]
    return (centered @ WEIGHTS["W_enc"] + GATED["b_gate"] > 0) * magnitudes.relu()


def layer_norm(x):
    return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)


def saved(path, tensors, **metadata):
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=metadata or None)
    return path


def folder(path, tensors, config, names=("cfg.json", "sae_weights.safetensors")):
    path.mkdir()
    (path / names[0]).write_text(json.dumps(config))
    if names[1].endswith(".pt"):
        torch.save(tensors, path / names[1])
        return path
    saved(path / names[1], tensors)
    return path


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"activation": "relu", "subtract_b_dec": True}, before(X).relu()),
        ({"activation": "relu", "subtract_b_dec": False}, before(X, False).relu()),
        ({"activation": "topk", "k": K, "subtract_b_dec": True}, top_k(before(X))),
        (
            {"activation": "jumprelu", "threshold": 0.5, "subtract_b_dec": True},
            torch.where(before(X) > 0.5, before(X), 0),
        ),
    ],
)
def test_settings_of_plain_tensors_come_from_the_caller_or_the_metadata(arguments, wanted, tmp_path):
    asked = models.load_sae(saved(tmp_path / "plain.safetensors", WEIGHTS), **arguments)
    texts = {name: str(value) for name, value in arguments.items()}
    stored = models.load_sae(saved(tmp_path / "said.safetensors", WEIGHTS, **texts))
    for encoder in (asked, stored):
        assert torch.allclose(encoder(X), wanted, atol=1e-5)
        assert torch.allclose(encoder(X.view(4, 10, -1)).flatten(0, 1), wanted, atol=1e-5)
    assert weights_fingerprint(asked) == weights_fingerprint(stored)


def test_a_threshold_per_latent_makes_jump_relu(tmp_path):
    path = saved(tmp_path / "jump.safetensors", {**WEIGHTS, "threshold": THRESHOLD})
    encoder = models.load_sae(path, subtract_b_dec=True)
    assert torch.allclose(encoder(X), torch.where(before(X) > THRESHOLD, before(X).relu(), 0), atol=1e-5)


SAELENS = {
    "standard": ({}, {}, before(X).relu()),
    "topk": ({"k": K}, {}, top_k(before(X))),
    "jumprelu": ({}, {"threshold": THRESHOLD}, torch.where(before(X) > THRESHOLD, before(X).relu(), 0)),
    "gated": ({}, GATED, gated(X)),
}


@pytest.mark.parametrize("architecture", SAELENS)
def test_a_folder_of_saelens_is_read(architecture, tmp_path):
    more, tensors, wanted = SAELENS[architecture]
    config = {"architecture": architecture, "d_in": N_CHANNELS, "d_sae": N_LATENTS, "apply_b_dec_to_input": True}
    config |= {"normalize_activations": "none", "reshape_activations": "none", "metadata": {}, **more}
    weights = {name: value for name, value in WEIGHTS.items() if architecture != "gated" or name != "b_enc"}
    encoder = models.load_sae(folder(tmp_path / "sae", {**weights, **tensors}, config))
    assert torch.allclose(encoder(X), wanted, atol=1e-5)


def test_settings_of_saelens_are_applied(tmp_path):
    def read(name, **config):
        return models.load_sae(folder(tmp_path / name, WEIGHTS, {"architecture": "standard", **config}))(X)

    assert torch.allclose(read("a", apply_b_dec_to_input=False), before(X, False).relu(), atol=1e-5)
    assert torch.allclose(read("b", normalize_activations="layer_norm"), before(layer_norm(X)).relu(), atol=1e-5)
    rescaled = X * (N_CHANNELS**0.5 / X.norm(dim=1, keepdim=True))
    assert torch.allclose(read("c", normalize_activations="constant_norm_rescale"), before(rescaled).relu(), atol=1e-5)
    old = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": None}
    assert torch.allclose(read("d", **old), top_k(before(X)), atol=1e-5)
    scaled = read("e", architecture="topk", k=K, rescale_acts_by_decoder_norm=True)
    assert torch.allclose(scaled, top_k(before(X) * WEIGHTS["W_dec"].norm(dim=1)), atol=1e-4)


PRISMA = {
    "relu": ({"normalize_activations": "layer_norm"}, {}, before(layer_norm(X)).relu()),
    "topk": ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}, {}, top_k(before(X))),
    "gated": ({"architecture": "gated"}, GATED, gated(X)),  # with b_enc, which is not used
}


@needs_pickles
@pytest.mark.parametrize("kind", PRISMA)
def test_a_folder_of_vit_prisma_is_read_without_the_config_object_in_its_weights(kind, tmp_path, monkeypatch):
    more, tensors, wanted = PRISMA[kind]
    config = {"activation_fn_str": "relu", "architecture": "standard", "normalize_activations": "none", **more}
    stored = vit_prisma_config("VisionModelSAERunnerConfig", monkeypatch)
    saved_by = {"cfg": stored, "state_dict": {**WEIGHTS, **tensors}}
    place = folder(tmp_path / "a", saved_by, config, ("config.json", "weights.pt"))
    monkeypatch.undo()  # ViT-Prisma need not be installed
    assert torch.allclose(models.load_sae(place)(X), wanted, atol=1e-5)


@needs_pickles
def test_no_other_object_in_weights_of_vit_prisma_is_loaded(tmp_path, monkeypatch):
    tensors = {"cfg": vit_prisma_config("AnotherConfig", monkeypatch), "state_dict": WEIGHTS}
    place = folder(tmp_path / "a", tensors, {"activation_fn_str": "relu"}, ("config.json", "weights.pt"))
    with pytest.raises(ModelError, match="isn't a file of tensors alone"):
        models.load_sae(place)


def vit_prisma_config(name, monkeypatch):
    """Return an object of a class that looks like ViT-Prisma's, while it can be saved."""
    made = type(name, (), {"__module__": "vit_prisma.sae.config"})
    for module in ("vit_prisma", "vit_prisma.sae", "vit_prisma.sae.config"):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: made}))
    config = made()
    vars(config).update(activation_fn_str="topk", activation_fn_kwargs={"k": 5}, _device="cuda")
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architecture": "batchtopk"},
            "architecture 'batchtopk' is not supported; standard, topk, jumprelu, gated are",
        ),
        (
            {"normalize_activations": "expected_average_only_in"},
            "normalize_activations 'expected_average_only_in' is not",
        ),
        ({"reshape_activations": "hook_z"}, "reshape_activations 'hook_z' is not supported"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn_str 'tanh-relu' is not supported"),
        ({"is_transcoder": True}, "is_transcoder True is not supported"),
        ({"architecture": "jumprelu"}, "the tensor threshold of activation jumprelu is missing"),
        ({"architecture": "topk", "k": 21}, "top-k must keep 1 to 20 latents, not k = 21"),
        ({"architecture": "topk"}, "top-k must keep 1 to 20 latents, not k = None"),
        ([], "cfg.json holds no table"),
        ({"architecture": "topk", "k": "three"}, "k must be a valid integer.*not .three"),
        ({"apply_b_dec_to_input": "perhaps"}, "subtract_b_dec must be a valid boolean.*not .perhaps"),
    ],
)
def test_what_is_not_supported_is_named(config, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        models.load_sae(folder(tmp_path / "sae", WEIGHTS, config))


def test_missing_and_contradictory_settings_and_files_are_named(tmp_path):
    plain = saved(tmp_path / "plain.safetensors", WEIGHTS)
    with pytest.raises(ModelError, match="lacks activation"):
        models.load_sae(plain)
    with pytest.raises(ModelError, match="lacks subtract_b_dec"):
        models.load_sae(plain, activation="relu")
    with pytest.raises(ModelError, match=r"activation must be 'relu', 'topk', .*not 'ReLU'"):
        models.load_sae(plain, activation="ReLU", subtract_b_dec=True)
    stored = saved(tmp_path / "said.safetensors", WEIGHTS, activation="topk", k="3", subtract_b_dec="true")
    with pytest.raises(ModelError, match="the file has k 3"):
        models.load_sae(stored, k=4)
    with pytest.raises(ModelError, match=r"must hold cfg.json and sae_weights.safetensors or config"):
        models.load_sae(tmp_path)
    with pytest.raises(ModelError, match="no weights file"):
        models.load_sae(tmp_path / "none.safetensors")
    turned = saved(tmp_path / "t.safetensors", {**WEIGHTS, "W_enc": WEIGHTS["W_enc"].T})
    with pytest.raises(ModelError, match=r"b_enc must be \(6,\), as W_enc is \(C, F\), not \(20,\)"):
        models.load_sae(turned, activation="relu", subtract_b_dec=False)
    with pytest.raises(ModelError, match="aren't finite"):
        broken = {**WEIGHTS, "b_enc": torch.full((N_LATENTS,), torch.nan)}
        models.load_sae(saved(tmp_path / "nan.safetensors", broken), activation="relu", subtract_b_dec=True)


def test_settings_are_part_of_an_encoders_identity():
    topk = [SparseEncoder(WEIGHTS, "topk", k=k) for k in (3, 4)]
    others = [SparseEncoder(WEIGHTS, "relu"), SparseEncoder(WEIGHTS, "relu", normalize="layer_norm")]
    assert len({weights_fingerprint(encoder) for encoder in [*topk, *others]}) == 4
    topk[1].load_state_dict(topk[0].state_dict())
    assert weights_fingerprint(topk[0]) == weights_fingerprint(topk[1])
    assert "6, 20, activation=topk, k=3" in repr(topk[1])


def linear_state(norm):
    """Return the state dict of Overcomplete's linear encoder."""
    state = {"encoder.final_block.0.weight": WEIGHTS["W_enc"].T, "encoder.final_block.0.bias": WEIGHTS["b_enc"]}
    state |= {"dictionary._weights": WEIGHTS["W_dec"], "dictionary.multiplier": torch.zeros(())}
    return state | {f"encoder.final_block.1.{name}": value for name, value in norm.state_dict().items()}


def test_a_state_dict_of_overcomplete_is_read(tmp_path):
    path = saved(tmp_path / "linear.safetensors", linear_state(nn.Identity()))
    assert torch.allclose(models.load_sae(path, activation="topk", k=K)(X), top_k(before(X, False)), atol=1e-5)
    norm = nn.BatchNorm1d(N_LATENTS)
    norm(before(X, False))  # statistics
    norm.eval()
    path = saved(tmp_path / "bn.safetensors", linear_state(norm))
    assert torch.allclose(models.load_sae(path, activation="relu")(X), norm(before(X, False)).relu(), atol=1e-5)
    path = saved(tmp_path / "ln.safetensors", linear_state(nn.LayerNorm(N_LATENTS)))
    with pytest.raises(ModelError, match="linear encoders with or without batch norm are supported"):
        models.load_sae(path, activation="relu")


@pytest.fixture
def overcomplete(monkeypatch):
    for name in ("models", "visualization"):  # they need timm, OpenCV and a matplotlib before 3.9
        monkeypatch.setitem(sys.modules, f"overcomplete.{name}", MagicMock())
    return pytest.importorskip("overcomplete.sae")


@pytest.mark.parametrize("kind", ["SAE", "TopKSAE", "JumpSAE"])
@pytest.mark.parametrize("encoder", ["linear", "mlp_bn_1"])
def test_latents_equal_those_of_overcomplete(kind, encoder, overcomplete, tmp_path):
    options = {"SAE": {}, "TopKSAE": {"top_k": K}, "JumpSAE": {}}[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = getattr(overcomplete, kind)(N_CHANNELS, N_LATENTS, encoder_module=encoder, **options)
        if kind == "JumpSAE":
            original.thresholds.data = THRESHOLD.log()
        original(X)  # batch norm's statistics
    original.eval()
    path = saved(tmp_path / "sae.safetensors", original.state_dict())
    settings = {"SAE": {"activation": "relu"}, "TopKSAE": {"activation": "topk", "k": K}, "JumpSAE": {}}[kind]
    with torch.no_grad():
        assert torch.allclose(models.load_sae(path, **settings)(X), original.encode(X)[1], atol=1e-5)


@pytest.mark.parametrize(("activation", "k"), [("relu", None), ("topk", 1)])
def test_a_latent_that_is_off_is_rendered_by_its_pre_activation(activation, k):
    model, spec = planted_network()
    images, colors = planted_images(n_each=10)
    weights = {"W_enc": torch.eye(5), "b_enc": torch.full((5,), -0.1)}
    unit = Unit("detectors", 1, encoder=SparseEncoder(weights, activation, k=k))
    facets = find_facets(model, unit, images[colors == 1], n_facets=1, input_spec=spec)
    with pytest.warns(MFVWarning, match="gained nothing"):  # the latent is off to the end
        (made,) = render_facets(model, facets, images, recipe="plain", steps=60, input_spec=spec)
    assert (made.history["activation"] == 0).all()
    gains = (made.image - made.start).mean((1, 2))
    assert gains[1] > max(gains[0], gains[2]) + 0.02  # but the image turns green


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Return a folder of images of four kinds, and of an SAE whose third latent they all activate."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "images").mkdir()
    for i, image in enumerate(planted_images(n_each=6, distractor=6)[0]):
        to_pil(image).save(root / "images" / f"{i:02d}.png")
    latents = torch.tensor([[1.0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]).T
    saved(root / "sae.safetensors", {"W_enc": latents, "b_enc": torch.zeros(3)}, activation="relu")
    saved(root / "other.safetensors", {"W_enc": 2 * latents, "b_enc": torch.zeros(3)}, activation="relu")
    return root


PLANTED = ("--model", "captum_mfv.datasets:planted_network")


def interrupt(*_, **__):
    raise KeyboardInterrupt


def call(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


def test_the_command_runs_resumes_and_evaluates_a_latent(inputs, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    words = [
        "run",
        *PLANTED,
        "--unit",
        "detectors:2",
        "--images",
        inputs / "images",
        "--sae",
        inputs / "sae.safetensors",
    ]
    words += ["--facets", 2, "--steps", 4, "--out", out, "--quiet"]
    with monkeypatch.context() as patched:
        patched.setattr("captum_mfv.attr.facet_maps", interrupt)
        assert call(*words) == 130
    assert call(*words) == 0
    sae = models.load_sae(inputs / "sae.safetensors")
    folder = RunFolder.read(out)
    assert folder.manifest["unit"]["encoder"] == folder.settings["sae_hash"] == weights_fingerprint(sae)
    assert "detectors:latent 2" in (out / "report.html").read_text()
    assert folder.read_facets(sae).unit == Unit("detectors", 2, encoder=sae)
    assert f"--sae {inputs}" in folder.settings["command"]
    other = [inputs / "other.safetensors" if word == inputs / "sae.safetensors" else word for word in words]
    assert call(*other) == 2
    assert "sae_hash" in capsys.readouterr().err
    evaluate = [
        "evaluate",
        out,
        "--judge",
        PLANTED[1],
        "--judge-code",
        "rectified",
        "--control",
        "unit alone",
        *PLANTED,
    ]
    assert call(*evaluate) == 2
    assert "command's --sae" in capsys.readouterr().err
    assert call(*evaluate, "--sae", inputs / "other.safetensors") == 2
    assert "encoder isn't that of detectors:latent 2" in capsys.readouterr().err
    assert call(*evaluate, "--sae", inputs / "sae.safetensors", "--quiet") == 0
    assert set(folder.read_metrics()["judge"]["controls"]) == {"real image", "start", "unit alone"}


def test_a_latent_is_run_on_its_top_images(inputs, tmp_path):
    options = {"sae": inputs / "sae.safetensors", "top_k": 6, "facets": 1, "steps": 2}
    folder = run(RunSettings(PLANTED[1], "detectors:0", inputs / "images", **options), tmp_path / "run")
    (row,) = folder.read_members()
    assert {member["path"] for member in row["members"]} == {f"{i:02d}.png" for i in range(6)}  # the red ones
