import contextlib

import pytest
import torch
from testing_common import random_pixels, randomize, tiny_classifier
from testing_methods import CONVOLUTIONAL, TRANSFORMERS, MethodTester, our_hooks, relu_unless_all_negative
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    CLIPConfig,
    CLIPForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from hf_explain import FrozenClassifier
from hf_explain.methods.attention import (
    attention_guided_cam,
    legrad,
    partial_lrp,
    raw_attention,
    rollout,
    transformer_attribution,
)
from hf_explain.methods.relevance import _linear, _product, _sum, block_layers, token_classifiers
from hf_explain.registry import METHODS as METHODS_BY_NAME
from hf_explain.registry import methods_for


METHODS = (raw_attention, rollout, transformer_attribution, partial_lrp, attention_guided_cam, legrad)
# how many prefix tokens a classification head reads, and how many there are
READ = {"vit": 1, "deit": 1, "deit-teacher": 2}
PREFIX = {"vit": 1, "deit": 2, "deit-teacher": 2}


class LiteralTransformer:
    """One image through a ViT written out by hand, every intermediate kept, heads in a loop."""

    def __init__(self, classifier, image):
        self.model = classifier.model
        body = getattr(self.model, "vit", None) or self.model.deit
        self.blocks = body.layers
        self.hidden = [body.embeddings(image[None])[0].detach().requires_grad_()]
        self.steps = []
        for block in self.blocks:
            entering = self.hidden[-1]
            normed = block.layernorm_before(entering)
            attention = block.attention
            width = attention.head_dim
            query, key, value = (getattr(attention, name)(normed) for name in ("q_proj", "k_proj", "v_proj"))
            scores, weights, read = [], [], []
            for head in range(attention.num_attention_heads):
                part = slice(head * width, (head + 1) * width)
                scores.append(query[:, part] @ key[:, part].T / width**0.5)
                weights.append(scores[-1].softmax(-1))
                read.append(weights[-1] @ value[:, part])
            read = torch.cat(read, dim=1)
            attended = attention.o_proj(read)
            middle = entering + attended
            normed_again = block.layernorm_after(middle)
            expanded = block.mlp.fc1(normed_again)
            active = block.mlp.activation_fn(expanded)
            contracted = block.mlp.fc2(active)
            self.hidden.append(middle + contracted)
            self.steps.append(
                {
                    "entering": entering, "normed": normed, "query": query, "key": key, "value": value,
                    "scores": scores, "weights": weights, "read": read, "attended": attended, "middle": middle,
                    "normed_again": normed_again, "active": active, "contracted": contracted,
                }
            )  # fmt: skip
        self.norm = body.layernorm
        self.final = body.layernorm(self.hidden[-1])
        names = ["classifier"] if hasattr(self.model, "classifier") else ["cls_classifier", "distillation_classifier"]
        self.heads = [getattr(self.model, name) for name in names]
        self.logits = sum(head(self.final[index]) for index, head in enumerate(self.heads)) / len(self.heads)

    def gradients(self, label):
        """Of the logit at every attention matrix: one list of heads per block."""
        flat = [weights for step in self.steps for weights in step["weights"]]
        flat = list(torch.autograd.grad(self.logits[label], flat, retain_graph=True))
        return [[flat.pop(0) for _ in step["weights"]] for step in self.steps]

    @torch.no_grad()
    def relevance(self, label):
        """Of every attention matrix: one list of heads per block, contribution by contribution."""
        relevance = torch.zeros_like(self.hidden[-1])
        for index, head in enumerate(self.heads):
            start = torch.zeros(head.out_features)
            start[label] = 1 / len(self.heads)
            relevance[index] = linear_relevance(self.final[index][None], head.weight, start[None])[0]
        found = []
        for block, step in zip(reversed(self.blocks), reversed(self.steps)):
            attention = block.attention
            width = attention.head_dim
            kept, changed = sum_relevance(step["middle"], step["contracted"], relevance)
            changed = linear_relevance(step["active"], block.mlp.fc2.weight, changed)
            relevance = kept + linear_relevance(step["normed_again"], block.mlp.fc1.weight, changed)
            kept, changed = sum_relevance(step["entering"], step["attended"], relevance)
            changed = linear_relevance(step["read"], attention.o_proj.weight, changed)
            maps, parts = [], {name: torch.zeros_like(step[name]) for name in ("query", "key", "value")}
            for head, weights in enumerate(step["weights"]):
                part = slice(head * width, (head + 1) * width)
                of_weights, parts["value"][:, part] = product_relevance(
                    weights, step["value"][:, part], changed[:, part]
                )
                maps.append(of_weights)
                of_query, of_key = product_relevance(step["query"][:, part], step["key"][:, part].T, of_weights)
                parts["query"][:, part], parts["key"][:, part] = of_query, of_key.T
            relevance = kept
            for name, module in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
                weight = getattr(attention, module).weight
                relevance = relevance + linear_relevance(step["normed"], weight, parts[name])
            found.insert(0, maps)
        return found


def linear_relevance(entering, weight, relevance):
    """Each output hands its relevance to its positive contributions, in proportion."""
    contributions = (entering[:, None, :] * weight[None]).clamp(min=0)  # (token, out, in)
    total = contributions.sum(-1, keepdim=True)
    shares = torch.where(total > 0, contributions / (total + 1e-9), 0.0)
    return (shares * relevance[:, :, None]).sum(1)


def product_relevance(left, right, relevance):
    """Each entry of `left @ right` hands its relevance to its summands, half of it to each of their factors."""
    contributions = left[:, :, None] * right[None]  # (row, inner, column)
    total = contributions.sum(1, keepdim=True)
    shares = contributions / (total + 1e-9 * torch.sign(total)) * relevance[:, None] / 2
    return shares.sum(2), shares.sum(0)


def sum_relevance(left, right, relevance):
    total = left + right
    share = relevance / (total + 1e-9 * torch.sign(total))
    parts = left * share, right * share
    sizes = [part.sum().abs() for part in parts]
    return [part / part.sum() * size / sum(sizes) * relevance.sum() for part, size in zip(parts, sizes)]


class AttentionTester(MethodTester):
    families = TRANSFORMERS

    def literal(self, steps, label, read):
        """One map as a row over all tokens."""
        raise NotImplementedError

    def test_literal(self):
        for family, classifier in self.each_family():
            pixel_values = random_pixels(family)
            output = self.call(classifier, pixel_values, [0, 3])
            for image, label in enumerate((0, 3)):
                literal = LiteralTransformer(classifier, pixel_values[image])
                torch.testing.assert_close(literal.logits.detach(), output.logits[image], atol=1e-5, rtol=1e-4)
                row = self.literal(literal, label, READ[family])
                expected = row[PREFIX[family] :].view(4, 4).detach()
                atol = 1e-3 * expected.abs().max().item()
                torch.testing.assert_close(output.saliency_logits[image], expected, atol=atol, rtol=1e-2)

    def test_layers(self):
        for family, classifier in self.each_family():
            pixel_values = random_pixels(family, 1)
            maps = [self.call(classifier, pixel_values, 0, layer=layer).saliency for layer in ("layer1", -2, -1)]
            assert all(map_.amax() == 1 for map_ in maps)
            assert not torch.equal(maps[0], maps[2])
            with pytest.raises(ValueError, match="`layer` 'stem' has no attention; .* takes 'layer1' to 'layer3'"):
                self.call(classifier, pixel_values, layer="stem")

    def test_convolutional_classifiers_are_refused(self):
        for family in CONVOLUTIONAL:
            classifier = tiny_classifier(family)
            name = type(classifier.model).__name__
            with pytest.raises(ValueError, match=f"{type(self).method.__name__} needs attention among .* {name} has"):
                self.call(classifier, random_pixels(family))


class TestRawAttention(AttentionTester):
    method = raw_attention
    looks_at_class = False

    def literal(self, literal, label, read):
        weights = torch.stack(literal.steps[-1]["weights"]).mean(0)
        return sum(weights[token] for token in range(read)) / read


class TestRollout(AttentionTester):
    method = rollout
    looks_at_class = False

    def literal(self, literal, label, read):
        product = torch.eye(len(literal.final))
        for step in literal.steps:
            mixed = torch.stack(step["weights"]).mean(0) + torch.eye(len(product))
            product = mixed / mixed.sum(-1, keepdim=True) @ product
        return product[:read].mean(0)


def chained(matrices, read):
    product = torch.eye(len(matrices[0]))
    for matrix in matrices:
        product = (matrix + torch.eye(len(matrix))) @ product
    return product[:read].mean(0)


class TestTransformerAttributionOfRelevance(AttentionTester):
    method = transformer_attribution
    options = {"rule": "relevance"}
    tolerance = 1e-3
    bfloat16_correlation = -2  # the published rules divide by sums that cancel: only a finite map is held here

    def literal(self, literal, label, read):
        pairs = zip(literal.gradients(label), literal.relevance(label))
        return chained([sum((g * r).clamp(min=0) for g, r in zip(*heads)) / len(heads[0]) for heads in pairs], read)


class TestTransformerAttribution(AttentionTester):
    method = transformer_attribution

    def literal(self, literal, label, read):
        pairs = zip(literal.gradients(label), (step["weights"] for step in literal.steps))
        return chained([sum((g * w).clamp(min=0) for g, w in zip(*heads)) / len(heads[0]) for heads in pairs], read)

    def test_unknown_rule(self):
        with pytest.raises(ValueError, match="`rule` must be one of attention, relevance, got 'lrp'"):
            transformer_attribution(tiny_classifier("vit"), random_pixels("vit"), rule="lrp")


class TestPartialLrp(AttentionTester):
    method = partial_lrp
    tolerance = 1e-3

    def literal(self, literal, label, read):
        rows = [head[:read].clamp(min=0).mean(0) for head in literal.relevance(label)[-1]]
        return sum(rows) / len(rows)


class TestAttentionGuidedCam(AttentionTester):
    method = attention_guided_cam

    def literal(self, literal, label, read):
        total = 0
        for gradients, step in zip(literal.gradients(label), literal.steps):
            for gradient, scores in zip(gradients, step["scores"]):
                total = total + (gradient.clamp(min=0) * scores.sigmoid())[:read].mean(0)
        return total


class TestLeGrad(AttentionTester):
    method = legrad

    def literal(self, literal, label, read):
        total = 0
        for tokens, step in zip(literal.hidden[1:], literal.steps):
            final = literal.norm(tokens)
            score = sum(head(final[index])[label] for index, head in enumerate(literal.heads)) / len(literal.heads)
            gradients = torch.autograd.grad(score, step["weights"], retain_graph=True)
            total = total + sum(gradient.clamp(min=0).mean(0) for gradient in gradients) / len(gradients)
        return total


# ---------------------------------------------------------------------------------- transformers outside of the table


def clip_classifier():
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    vision |= {"image_size": 32, "patch_size": 8}
    return CLIPForImageClassification(CLIPConfig(vision_config=vision, text_config={}, num_labels=5))


def siglip_classifier():
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    vision |= {"image_size": 32, "patch_size": 8}
    return SiglipForImageClassification(SiglipConfig(vision_config=vision, text_config={}, num_labels=5))


def dinov2(registers):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "mlp_ratio": 2, "num_labels": 5}
    sizes |= {"image_size": 32, "patch_size": 8}
    if registers:
        config = Dinov2WithRegistersConfig(num_register_tokens=4, **sizes)
        return Dinov2WithRegistersForImageClassification(config)
    return Dinov2ForImageClassification(Dinov2Config(**sizes))


def beit(use_mean_pooling):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 32}
    sizes |= {"image_size": 32, "patch_size": 8, "num_labels": 5, "use_relative_position_bias": True}
    return BeitForImageClassification(BeitConfig(use_mean_pooling=use_mean_pooling, **sizes))


# prefix tokens, those of them that are read, whether the patches are
PLAIN = {
    "clip": (clip_classifier, 1, (), True),
    "siglip": (siglip_classifier, 0, (), True),
    "dinov2": (lambda: dinov2(registers=False), 1, (0,), True),
    "dinov2_with_registers": (lambda: dinov2(registers=True), 5, (0,), True),
    "beit": (lambda: beit(use_mean_pooling=True), 1, (), True),
    "beit_cls": (lambda: beit(use_mean_pooling=False), 1, (0,), False),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_transformers(name):
    """Weights are those of Transformers' own eager pass; the methods are their formulas on these weights."""
    build, prefix, read, patches = PLAIN[name]
    model = randomize(build())
    model.set_attn_implementation("sdpa")
    classifier, pixel_values = FrozenClassifier(model), random_pixels("vit", 2)
    layout = classifier.token_layout
    assert (len(layout.blocks), layout.num_prefix_tokens, layout.prefix_read, layout.patches_read) == (
        3,
        prefix,
        read,
        patches,
    )
    # whole blocks, not the attention inside of them
    assert [block.rpartition(".")[2] for block in layout.blocks] == ["0", "1", "2"]
    maps = {method: method(classifier, pixel_values, [0, 3]) for method in METHODS if method is not partial_lrp}
    assert model.config._attn_implementation == "sdpa" and not our_hooks(classifier)
    assert set(methods_for(classifier)) == set(METHODS_BY_NAME) - {"partial_lrp"}
    with pytest.raises(ValueError, match="through the modules of ViT and DeiT, not of .*rule='attention', or legrad"):
        transformer_attribution(classifier, pixel_values, rule="relevance")

    model.set_attn_implementation("eager")
    states = []
    blocks = [model.get_submodule(block) for block in layout.blocks]
    handles = [block.register_forward_hook(lambda module, inputs, output: states.append(output)) for block in blocks]
    output = model(pixel_values.clone().requires_grad_(), output_attentions=True)
    for handle in handles:
        handle.remove()
    states = [state[0] if isinstance(state, tuple) else state for state in states]
    weights = output.attentions[:3]
    torch.testing.assert_close(maps[rollout].logits, output.logits.detach(), rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(output.logits[0, 0] + output.logits[1, 3], weights, retain_graph=True)
    for image, label in enumerate((0, 3)):

        def rows(matrix):
            kept = [matrix[token] for token in read] + ([matrix[prefix:].mean(0)] if patches else [])
            return (sum(kept) / len(kept))[prefix:].view(4, 4).detach()

        product = attributed = torch.eye(prefix + 16)
        for weight, gradient in zip(weights, gradients):
            mean = weight[image].mean(0)
            product = (mean + torch.eye(len(mean))) / 2 @ product
            relevance = (weight[image] * gradient[image]).clamp(min=0).mean(0)
            attributed = attributed + relevance @ attributed
        total = 0
        for weight, state in zip(weights, states):
            with substituted(blocks[-1], state):
                logits = model(pixel_values).logits
            (gradient,) = torch.autograd.grad(logits[image, label], weight, retain_graph=True)
            total = total + gradient[image].clamp(min=0).mean((0, 1))
        expected = {
            raw_attention: rows(weights[-1][image].mean(0)),
            rollout: rows(product),
            transformer_attribution: rows(attributed),
            legrad: total[prefix:].view(4, 4),
        }
        for method, map_ in expected.items():
            torch.testing.assert_close(maps[method].saliency_logits[image], map_, rtol=1e-3, atol=1e-6)


@contextlib.contextmanager
def substituted(module, value):
    """Another output of a module, in the form it has."""
    handle = module.register_forward_hook(
        lambda module, inputs, output: (value, *output[1:]) if isinstance(output, tuple) else value
    )
    yield
    handle.remove()


def test_windows_of_attention_are_refused():
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    classifier = FrozenClassifier(SwinForImageClassification(config))
    assert classifier.token_layout is None and "rollout" not in methods_for(classifier)
    with pytest.raises(ValueError, match="rollout needs attention among all patches; SwinForImageClassification has"):
        rollout(classifier, random_pixels("vit"))


def test_relevance_is_conserved():
    """Whatever goes into a rule comes out of it, for every image on its own."""
    generator = torch.Generator().manual_seed(0)
    left, right, given = (torch.randn(2, 7, 7, generator=generator) for _ in range(3))
    linear = torch.nn.Linear(40, 7)
    torch.nn.init.normal_(linear.weight, generator=generator)
    entering = torch.randn(2, 7, 40, generator=generator)
    totals = given.sum((1, 2))
    torch.testing.assert_close(_linear(linear, entering, given).sum((1, 2)), totals, atol=1e-4, rtol=1e-4)
    parts = _sum(left, right, given)
    torch.testing.assert_close(parts[0].sum((1, 2)) + parts[1].sum((1, 2)), totals, atol=1e-3, rtol=1e-3)
    # of positive factors, whose sums do not cancel
    for part in _product(left.abs(), right.abs(), given):
        torch.testing.assert_close(part.sum((1, 2)), totals / 2, atol=1e-4, rtol=1e-4)


def test_heads_and_blocks_are_found():
    for family in TRANSFORMERS:
        classifier = tiny_classifier(family)
        assert len(token_classifiers(classifier)) == READ[family]
        layers = block_layers(classifier)
        assert len(layers) == 3
        for block in layers:
            names = {id(module): name for name, module in block.block.named_modules()}
            found = [names[id(m)] for m in (block.query, block.key, block.value, block.output, block.expand)]
            assert found == ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1"]
            assert names[id(block.contract)] == "mlp.fc2"


def test_implementation_goes_back_even_after_an_error():
    classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit")
    before = classifier.config._attn_implementation
    for method in METHODS:
        with pytest.raises(ValueError):
            method(classifier, pixel_values, "dog")
        assert classifier.config._attn_implementation == before
        assert not our_hooks(classifier)


def test_nothing_positive_still_gives_a_map():
    assert relu_unless_all_negative(torch.tensor([[-1.0, -2.0]])).tolist() == [[-1.0, -2.0]]
    classifier, pixel_values = tiny_classifier("deit-teacher"), random_pixels("deit-teacher", 8)
    for method in METHODS:
        worst = method(classifier, pixel_values).logits.argmin(-1)
        assert method(classifier, pixel_values, worst).saliency.flatten(1).amax(1).eq(1).all()
