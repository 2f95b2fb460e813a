"""Full-size networks and the SpectralKD gradient against timm and PyTorch autograd, on real pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxkd import distill, models, weights

pytestmark = [pytest.mark.slow, pytest.mark.parity]

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

# tap -> (module of timm, whether its input is meant and not its output, from its layout to jaxkd's)
Hooks = dict[str, tuple[object, bool, Callable[[np.ndarray], np.ndarray]]]


@pytest.fixture(scope="module")
def pictures(request) -> np.ndarray:
    """(2, 224, 224, 3) normalised photographs, or, without the shared data, pictures without any symmetry."""
    try:
        folder = request.getfixturevalue("shared_data")("imagenet1k_sample_256") / "img"
        images = [Image.open(p).convert("RGB").crop((16, 16, 240, 240)) for p in sorted(folder.glob("*.jpg"))[:2]]
        pixels = np.stack([np.asarray(image) for image in images]) / 255
    except pytest.skip.Exception:
        y, x = np.mgrid[:224, :224] / 224
        waves = [np.sin(9 * x**2 + (4 + i) * y + i) * np.cos((5 + 2 * i) * x * y + y) for i in range(6)]
        pixels = np.stack(waves, axis=-1).reshape(224, 224, 2, 3).transpose(2, 0, 1, 3) / 2 + 0.5
    for other in (pixels[:, ::-1], pixels[:, :, ::-1], pixels.swapaxes(1, 2), pixels[..., ::-1]):
        assert np.abs(other - pixels).mean() > 0.01
    return ((pixels - MEAN) / STD).astype(np.float32)


@pytest.fixture(scope="module")
def network(timm):
    """`network("cait_s24_224")` -> timm's network with every parameter redrawn, attention unfused."""
    import torch

    timm.layers.set_fused_attn(False)

    def build(name: str, seed: int = 0):
        module = timm.create_model(name, pretrained=False).eval()
        rng = np.random.default_rng(seed)
        for key, value in module.named_parameters():
            kind = key.rsplit(".", 1)[-1]
            if "gamma" in kind:  # LayerScale: between 0.2 and 0.8 in size, and of either sign
                drawn = rng.uniform(0.2, 0.8, value.shape) * rng.choice([-1, 1], value.shape)
            elif value.ndim > 1 and kind == "weight":
                # Neighbouring pixels are alike, so that their weighted sum is far larger than that of features.
                scale = 0.1 if key.startswith("patch_embed") else 1.0
                drawn = rng.normal(0, scale * np.prod(value.shape[1:]) ** -0.5, value.shape)
            elif kind == "weight":
                drawn = rng.normal(1, 0.2, value.shape)
            else:  # CaiT adds proj_w's bias to the weight of each of 196 tokens
                drawn = rng.normal(0, 0.3 / 196 if key.endswith("proj_w.bias") else 0.3, value.shape)
            with torch.no_grad():
                value.copy_(torch.from_numpy(drawn.astype(np.float32)))
        return module

    yield build
    timm.layers.set_fused_attn(True)


def state_of(module) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy() for k, v in module.state_dict().items()}


def recorded(module, hooks: Hooks, images: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Output of a timm network, and what passed at each hook."""
    import torch

    seen, handles = {}, []
    for name, (part, is_input, convert) in hooks.items():

        def keep(_, inputs, output, name=name, is_input=is_input, convert=convert):
            seen[name] = convert((inputs[0] if is_input else output).detach().numpy())

        handles.append(part.register_forward_hook(keep))
    with torch.no_grad():
        output = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    for handle in handles:
        handle.remove()
    return output, seen


def patches(tokens: np.ndarray) -> np.ndarray:
    return tokens[:, -196:].reshape(tokens.shape[0], 14, 14, -1)


def by_picture(windows: np.ndarray) -> np.ndarray:
    return windows.reshape(2, -1, *windows.shape[1:])


def attention_hooks(name: str, block, batched=np.array) -> Hooks:
    """Queries, keys and values of a block: the thirds of the fused product, split into heads."""

    def part(index: int, heads: int):
        def convert(qkv: np.ndarray) -> np.ndarray:
            *lead, tokens, channels = qkv.shape
            thirds = qkv.reshape(*lead, tokens, 3, heads, channels // 3 // heads)
            return batched(np.moveaxis(thirds[..., index, :, :], -2, -3))

        return convert

    kinds = enumerate(("query", "key", "value"))
    return {name.format(kind): (block.attn.qkv, False, part(i, block.attn.num_heads)) for i, kind in kinds}


def vit_hooks(module) -> Hooks:
    hooks: Hooks = {"pre_logits": (module.head, True, np.array)}
    for i, block in enumerate(module.blocks):
        hooks[f"block_{i}"] = (block, False, patches)
        hooks[f"attn_{i}"] = (block.attn.attn_drop, True, np.array)
        hooks |= attention_hooks(f"{{}}_{i}", block)
        hooks[f"prefix_{i}"] = (block, False, lambda x: x[:, :1])
    return hooks


def cait_hooks(module) -> Hooks:
    hooks: Hooks = {"pre_logits": (module.head, True, np.array)}
    for i, block in enumerate(module.blocks):
        hooks[f"block_{i}"] = (block, False, patches)
        hooks[f"attn_{i}"] = (block.attn.proj_w, True, lambda x: x.transpose(0, 3, 1, 2))
        hooks |= attention_hooks(f"{{}}_{i}", block)
    for i, block in enumerate(module.blocks_token_only):
        hooks[f"cls_block_{i}"] = (block, False, lambda x: x[:, 0])
    return hooks


def swin_hooks(module) -> Hooks:
    hooks: Hooks = {"pre_logits": (module.head.fc, True, np.array)}
    for i, stage in enumerate(module.layers):
        hooks[f"stage_{i}"] = (stage, False, np.array)
        for j, block in enumerate(stage.blocks):
            hooks[f"stage_{i}.block_{j}"] = (block, False, np.array)
            hooks[f"stage_{i}.block_{j}.attn"] = (block.attn.attn_drop, True, by_picture)
            hooks |= attention_hooks(f"stage_{i}.block_{j}.{{}}", block, by_picture)
    return hooks


@pytest.mark.parametrize(
    ("name", "hooks_of"),
    [
        ("deit_tiny_patch16_224", vit_hooks),
        ("cait_s24_224", cait_hooks),
        ("swin_tiny_patch4_window7_224", swin_hooks),
    ],
)
def test_logits_and_every_tap_are_timms(network, pictures, name, hooks_of):
    module = network(name)
    hooks = hooks_of(module)
    model = models.create(name)
    assert set(hooks) == set(models.tap_names(model))
    expected, reference = recorded(module, hooks, pictures)
    variables = weights.from_timm(model, state_of(module))

    logits, features = jax.jit(partial(model.apply, taps=models.tap_names(model)))(variables, pictures)

    worst = {tap: float(np.abs(np.asarray(features[tap]) - reference[tap]).max()) for tap in hooks}
    print(f"\n{name}: logits {np.abs(logits - expected).max():.1e}, worst tap {max(worst, key=worst.get)}", end=" ")
    print(f"{max(worst.values()):.1e}; spread of the logits {expected.std():.2f}")
    assert expected.std() > 0.1  # weights that matter
    np.testing.assert_allclose(logits, expected, **TOLERANCE)
    for tap in hooks:
        np.testing.assert_allclose(features[tap], reference[tap], err_msg=tap, **TOLERANCE)


# --- the gradient of SpectralKD: DeiT-Tiny learns from CaiT-S24 over the eight published pairs of layers

PAIRS = [(0, 0), (1, 1), *((i, i + 12) for i in range(6, 12))]


def torch_objective(student, teacher, images: np.ndarray, labels: list[int]):
    """0.1 CE (smoothing 0.1) + 0.9 KL(teacher || student) + 0.2 mean of the layer losses, by PyTorch's functions."""
    import torch
    import torch.nn.functional as F

    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def answer(module, layers):
        kept, handles = {}, []
        for i in layers:

            def keep(_, inputs, output, i=i):
                tokens = output[:, -196:]
                kept[i] = tokens.transpose(1, 2).reshape(len(tokens), -1, 14, 14)

            handles.append(module.blocks[i].register_forward_hook(keep))
        logits = module(x)
        for handle in handles:
            handle.remove()
        return logits, kept

    with torch.no_grad():
        teacher_logits, teacher_maps = answer(teacher, [t for _, t in PAIRS])
    logits, maps = answer(student, [s for s, _ in PAIRS])
    layers = []
    for s, t in PAIRS:
        student_map, teacher_map = maps[s], teacher_maps[t]
        teacher_map = F.adaptive_avg_pool3d(teacher_map[:, None], student_map.shape[1:])[:, 0]
        student_map, teacher_map = (
            torch.view_as_real(torch.fft.rfft2(f, norm="ortho")) for f in (student_map, teacher_map)
        )
        layers.append(F.mse_loss(student_map, teacher_map))
    ce = F.cross_entropy(logits, torch.tensor(labels), label_smoothing=0.1)
    kl = F.kl_div(F.log_softmax(logits, -1), F.log_softmax(teacher_logits, -1), reduction="batchmean", log_target=True)
    spectral = torch.stack(layers).mean()
    loss = 0.1 * ce + 0.9 * kl + 0.2 * spectral
    loss.backward()
    terms = {"ce": ce, "kl": kl, "spectral": spectral}
    gradients = {k: v.grad.numpy() for k, v in student.named_parameters()}
    return loss.item(), {k: v.item() for k, v in terms.items()}, gradients


def test_the_gradient_of_spectralkd_is_pytorchs(network, pictures):
    names = ("deit_tiny_patch16_224", "cait_s24_224")
    reference = [network(name, seed) for seed, name in enumerate(names)]
    student, teacher = (models.create(name) for name in names)
    student_variables, teacher_variables = (
        weights.from_timm(model, state_of(module)) for model, module in zip((student, teacher), reference, strict=True)
    )
    labels = [3, 977]
    pairs = distill.resolve_pairs(PAIRS, models.tap_names(student), models.tap_names(teacher))
    objective = distill.preset("soft+spectral", pairs=pairs)
    # all taps, as above: this program is compiled already
    taught = jax.jit(partial(teacher.apply, taps=models.tap_names(teacher)))(teacher_variables, pictures)

    @jax.jit
    def value_and_grad(variables):
        def loss(variables):
            out = student.apply(variables, pictures, train=True, taps=objective.student_taps)
            loss, terms, _ = objective({}, {}, out, taught, {"label": jnp.asarray(labels)}, 0)
            return loss, terms

        return jax.value_and_grad(loss, has_aux=True)(variables)

    (loss, logged), gradients = value_and_grad(student_variables)

    expected_loss, terms, expected = torch_objective(*reference, pictures, labels)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
    for term, value in terms.items():
        np.testing.assert_allclose(logged[term], value, rtol=1e-4, err_msg=term)
    got = weights.to_timm(student, gradients)  # a gradient has its parameter's name and layout
    assert set(got) == set(expected)
    errors = {k: np.linalg.norm(got[k] - expected[k]) / np.linalg.norm(expected[k]) for k in expected}
    worst = max(errors, key=errors.get)
    print(
        f"\nloss {float(loss):.6f} and {expected_loss:.6f}, terms {terms}; worst gradient {worst} {errors[worst]:.1e}"
    )
    assert errors[worst] < 1e-4, worst
