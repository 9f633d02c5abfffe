"""Amortised pairs: encoders and decoders in modules, guides that read the rows."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import affine_autoregressive
from pyro.infer import JitTrace_ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.util import torch_item
from pyro.optim import Adam, ClippedAdam
from torch import nn
from torch.nn.functional import softplus

from tests.pyro_examples.example import Example, example, generator


def images(rows: int = 24, pixels: int = 16) -> torch.Tensor:
    return torch.bernoulli(torch.rand(rows, pixels, generator=generator()), generator=generator(1))


# ------------------------------------------------------------------------------------------------------- vae
class Encoder(nn.Module):
    def __init__(self, inputs: int, hidden: int, latents: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, hidden), nn.Softplus())
        self.loc = nn.Linear(hidden, latents)
        self.log_scale = nn.Linear(hidden, latents)

    def forward(self, x):
        h = self.body(x)
        return self.loc(h), torch.exp(0.5 * self.log_scale(h))


class Decoder(nn.Module):
    def __init__(self, latents: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(latents, hidden), nn.Softplus(), nn.Linear(hidden, outputs), nn.Sigmoid())

    def forward(self, z):
        return self.body(z)


class VAE(nn.Module):
    def __init__(self, pixels: int = 16, latents: int = 3) -> None:
        super().__init__()
        self.encoder = Encoder(pixels, 12, latents)
        self.decoder = Decoder(latents, 12, pixels)
        self.latents = latents

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(x.shape[0], self.latents), 1.0).to_event(1))
            pixels = self.decoder(z)
            pyro.sample("obs", dist.Bernoulli(pixels, validate_args=False).to_event(1), obs=x)
            return pixels

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.encoder(x)
            pyro.sample("latent", dist.Normal(loc, scale).to_event(1))


@example("examples/vae/vae.py")
def vae() -> Example:
    net = VAE()
    x = images()
    return Example(
        model=net.model, guide=net.guide, args=(x,), loss=JitTrace_ELBO, optim=lambda: Adam({"lr": 1e-3}), new=(x[:5],)
    )


# ------------------------------------------------------------------------------- a conditional one, globals
_PRIOR = {}


def conditional_model(xs, ys=None):
    nets = _PRIOR
    pyro.module("generation", nets["generation"])
    pyro.module("prior", nets["prior"])
    with pyro.plate("data", xs.shape[0]):
        loc, scale = nets["prior"](xs)
        z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
        logits = nets["generation"](torch.cat([xs, z], -1))
        pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=ys)


def conditional_guide(xs, ys=None):
    nets = _PRIOR
    with pyro.plate("data", xs.shape[0]):
        if ys is None:
            loc, scale = nets["prior"](xs)
        else:
            pyro.module("recognition", nets["recognition"])
            loc, scale = nets["recognition"](torch.cat([xs, ys], -1))
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))


@example("examples/cvae/cvae.py")
def conditional_vae() -> Example:
    _PRIOR.clear()
    _PRIOR["prior"] = Encoder(8, 10, 2)
    _PRIOR["recognition"] = Encoder(16, 10, 2)
    _PRIOR["generation"] = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 8))
    x = images()
    return Example(
        model=conditional_model, guide=conditional_guide, args=(x[:, :8], x[:, 8:]), new=(x[:6, :8],)
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ semi-supervised
class SemiSupervised(nn.Module):
    """Rows with and without a label; the label of the latter is summed out."""

    def __init__(self, pixels: int = 16, classes: int = 3, latents: int = 2) -> None:
        super().__init__()
        self.classes, self.latents = classes, latents
        self.encoder_y = nn.Sequential(nn.Linear(pixels, 10), nn.Softplus(), nn.Linear(10, classes), nn.Softmax(-1))
        self.encoder_z = Encoder(pixels + classes, 10, latents)
        self.decoder = Decoder(latents + classes, 10, pixels)

    def model(self, xs, ys=None):
        pyro.module("ss_vae", self)
        with pyro.plate("data", xs.shape[0]):
            z = pyro.sample("z", dist.Normal(xs.new_zeros(xs.shape[0], self.latents), 1.0).to_event(1))
            prior = xs.new_ones(xs.shape[0], self.classes) / self.classes
            ys = pyro.sample("y", dist.OneHotCategorical(prior), obs=ys)
            wide = z.expand(ys.shape[:-1] + z.shape[-1:])
            loc = self.decoder(torch.cat([wide, ys], -1))
            pyro.sample("x", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=xs)

    def guide(self, xs, ys=None):
        with pyro.plate("data", xs.shape[0]):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(self.encoder_y(xs)))
            wide = xs.expand(ys.shape[:-1] + xs.shape[-1:])
            loc, scale = self.encoder_z(torch.cat([wide, ys], -1))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


@example("examples/vae/ss_vae_M2.py, unlabelled rows")
def semi_supervised_vae() -> Example:
    net = SemiSupervised()
    return Example(
        model=net.model,
        guide=config_enumerate(net.guide, "parallel", expand=True),
        args=(images(),),
        loss=lambda: TraceEnum_ELBO(max_plate_nesting=1),
    )


@example("examples/vae/ss_vae_M2.py, labelled rows")
def semi_supervised_vae_labelled() -> Example:
    net = SemiSupervised()
    labels = torch.eye(3)[torch.arange(24) % 3]
    return Example(
        model=net.model,
        guide=config_enumerate(net.guide, "parallel", expand=True),
        args=(images(), labels),
        loss=lambda: TraceEnum_ELBO(max_plate_nesting=1),
    )


# --------------------------------------------------------------------------------------- counts of single cells
def half(tensor):
    return tensor.reshape((*tensor.shape[:-1], 2, -1)).unbind(-2)


def layers(*sizes: int) -> nn.Module:
    found: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes[:-1]):
        found += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*found, nn.Linear(sizes[-2], sizes[-1]))


class Cells(nn.Module):
    """Counts with zero inflation, a label that is seen for some cells, batch normalisation, a classification term."""

    def __init__(self, genes: int = 10, labels: int = 3, latents: int = 2) -> None:
        super().__init__()
        self.genes, self.labels, self.latents = genes, labels, latents
        self.decode_z = layers(latents + labels, 8, 2 * latents)
        self.decode_x = layers(latents, 8, 2 * genes)
        self.encode = layers(genes, 8, 2 * latents + 2)
        self.encode_z = layers(latents + labels, 8, 2 * latents)
        self.classify = layers(latents, 8, labels)

    def through(self, net, value):
        flat = net(value.reshape(-1, value.shape[-1]))
        return flat.reshape(value.shape[:-1] + flat.shape[-1:])

    def model(self, x, y=None):
        pyro.module("cells", self)
        theta = pyro.param("inverse_dispersion", 10.0 * x.new_ones(self.genes), constraint=dist.constraints.positive)
        with pyro.plate("batch", len(x)), poutine.scale(scale=1.0 / len(x)):
            z1 = pyro.sample("z1", dist.Normal(0, x.new_ones(self.latents)).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(self.labels)), obs=y)
            wide = z1.expand(y.shape[:-1] + z1.shape[-1:])
            loc, scale = half(self.through(self.decode_z, torch.cat([wide, y], -1)))
            z2 = pyro.sample("z2", dist.Normal(loc, softplus(scale)).to_event(1))
            size = pyro.sample("l", dist.LogNormal(2.0, x.new_ones(1)).to_event(1))
            gate, mean = half(self.through(self.decode_x, z2))
            logits = (size * mean.softmax(-1) + 5e-3).log() - (theta + 5e-3).log()
            counts = dist.ZeroInflatedNegativeBinomial(gate_logits=gate, total_count=theta, logits=logits)
            pyro.sample("x", counts.to_event(1), obs=x)

    def guide(self, x, y=None):
        pyro.module("cells", self)
        with pyro.plate("batch", len(x)), poutine.scale(scale=1.0 / len(x)):
            first, second = half(self.encode(torch.log1p(x)))
            pyro.sample("l", dist.LogNormal(first[..., -1:], softplus(second[..., -1:])).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(first[..., :-1], softplus(second[..., :-1])).to_event(1))
            label = dist.OneHotCategorical(logits=self.classify(z2))
            if y is None:
                y = pyro.sample("y", label)
            else:
                pyro.factor("classification", -0.1 * label.log_prob(y), has_rsample=False)
            wide = z2.expand(y.shape[:-1] + z2.shape[-1:])
            loc, scale = half(self.through(self.encode_z, torch.cat([wide, y], -1)))
            pyro.sample("z1", dist.Normal(loc, softplus(scale)).to_event(1))


@example("examples/scanvi/scanvi.py")
def single_cells() -> Example:
    net = Cells()
    counts = torch.poisson(4 * torch.rand(20, 10, generator=generator()), generator=generator(1))
    return Example(
        model=net.model,
        guide=config_enumerate(net.guide, "parallel", expand=True),
        args=(counts, torch.eye(3)[torch.arange(20) % 3]),
        loss=lambda: TraceEnum_ELBO(strict_enumeration_warning=False),
        optim=lambda: Adam({"lr": 5e-3}),
    )


# ------------------------------------------------------------------------------------------ deep Markov model
class DeepMarkov(nn.Module):
    """Sequences of unequal length, a recurrent guide that reads them backwards, masks, an annealing factor."""

    def __init__(self, inputs: int = 5, latents: int = 3, hidden: int = 6) -> None:
        super().__init__()
        self.transition = Encoder(latents, hidden, latents)
        self.emission = nn.Sequential(nn.Linear(latents, hidden), nn.ReLU(), nn.Linear(hidden, inputs))
        self.combine = Encoder(hidden, hidden, latents)
        self.from_z = nn.Linear(latents, hidden)
        self.rnn = nn.RNN(inputs, hidden, batch_first=True)
        self.z_0 = nn.Parameter(torch.zeros(latents))
        self.z_q_0 = nn.Parameter(torch.zeros(latents))
        self.h_0 = nn.Parameter(torch.zeros(1, 1, hidden))

    def model(self, sequences, backwards, mask, annealing=1.0):
        pyro.module("dmm", self)
        z = self.z_0.expand(sequences.shape[0], -1)
        with pyro.plate("sequences", len(sequences)):
            for t in pyro.markov(range(sequences.shape[1])):
                loc, scale = self.transition(z)
                with poutine.scale(scale=annealing):
                    z = pyro.sample(f"z_{t + 1}", dist.Normal(loc, scale).mask(mask[:, t : t + 1]).to_event(1))
                logits = self.emission(z)
                observed = dist.Bernoulli(logits=logits).mask(mask[:, t : t + 1]).to_event(1)
                pyro.sample(f"obs_x_{t + 1}", observed, obs=sequences[:, t])

    def guide(self, sequences, backwards, mask, annealing=1.0):
        pyro.module("dmm", self)
        h_0 = self.h_0.expand(1, len(sequences), self.rnn.hidden_size).contiguous()
        read, _ = self.rnn(backwards, h_0)
        read = read.flip(1)
        z = self.z_q_0.expand(sequences.shape[0], -1)
        with pyro.plate("sequences", len(sequences)):
            for t in pyro.markov(range(sequences.shape[1])):
                loc, scale = self.combine(0.5 * (torch.tanh(self.from_z(z)) + read[:, t]))
                with poutine.scale(scale=annealing):
                    z = pyro.sample(f"z_{t + 1}", dist.Normal(loc, scale).mask(mask[:, t : t + 1]).to_event(1))


@example("examples/dmm.py")
def deep_markov_model() -> Example:
    net = DeepMarkov()
    rows, steps = 6, 5
    x = torch.bernoulli(torch.full((rows, steps, 5), 0.4), generator=generator())
    lengths = torch.tensor([5, 3, 4, 5, 2, 4])
    mask = torch.arange(steps) < lengths[:, None]
    optim = {"lr": 3e-4, "betas": (0.96, 0.999), "clip_norm": 10.0, "lrd": 0.99996, "weight_decay": 2.0}
    return Example(model=net.model, guide=net.guide, args=(x, x.flip(1), mask, 0.5), optim=lambda: ClippedAdam(optim))


# ------------------------------------------------------------------------------- flows as the guide's last word
class FlowVAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(16, 10, 2), Decoder(2, 10, 16)
        self.iafs = nn.ModuleList([affine_autoregressive(2, hidden_dims=[6]) for _ in range(2)])

    def model(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0], 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(self.decoder(z), validate_args=False).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.encoder(x)
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(loc, scale).to_event(1), list(self.iafs)))


@example("examples/dmm.py --num-iafs, tutorials svi_flow_guide and vae_flow_prior")
def vae_with_flow() -> Example:
    net = FlowVAE()
    return Example(model=net.model, guide=net.guide, args=(images(),))


# ---------------------------------------------------------------------------------- attend, infer, repeat, small
class Attend(nn.Module):
    """Objects that may be there or not, one after the other, with a neural baseline for the discrete choice."""

    def __init__(self, pixels: int = 12, latents: int = 2, steps: int = 2) -> None:
        super().__init__()
        self.steps, self.latents = steps, latents
        self.rnn = nn.LSTMCell(pixels + latents + 1, 8)
        self.predict = nn.Linear(8, 1 + 2 * latents)
        self.decode = nn.Linear(latents, pixels)
        self.baseline = nn.Linear(pixels, 1)
        self.h_init, self.c_init = nn.Parameter(torch.zeros(1, 8)), nn.Parameter(torch.zeros(1, 8))

    def model(self, data, batch_size):
        pyro.module("decode", self.decode)
        with pyro.plate("data", data.size(0)) as rows:
            batch = data[rows]
            n = batch.size(0)
            there, image = torch.ones(n, 1), torch.zeros(n, data.size(1))
            for t in range(self.steps):
                there = pyro.sample(f"z_pres_{t}", dist.Bernoulli(0.6 * there).to_event(1))
                what = dist.Normal(torch.zeros(n, self.latents), 1.0).mask(there).to_event(1)
                image = image + there * self.decode(pyro.sample(f"z_what_{t}", what))
            pyro.sample("obs", dist.Normal(image, 0.3 * torch.ones(n, data.size(1))).to_event(1), obs=batch)

    def guide(self, data, batch_size):
        pyro.module("rnn", self.rnn)
        pyro.module("predict", self.predict)
        pyro.module("baseline", self.baseline)
        pyro.param("h_init", self.h_init)
        pyro.param("c_init", self.c_init)
        with pyro.plate("data", data.size(0), subsample_size=batch_size) as rows:
            batch = data[rows]
            n = batch.size(0)
            h, c = self.h_init.expand(n, -1), self.c_init.expand(n, -1)
            there, what = torch.ones(n, 1), torch.zeros(n, self.latents)
            for t in range(self.steps):
                h, c = self.rnn(torch.cat([batch, what, there], 1), (h, c))
                out = self.predict(h)
                value = (self.baseline(batch) * there.detach()).squeeze(-1)
                there = pyro.sample(
                    f"z_pres_{t}",
                    dist.Bernoulli(torch.sigmoid(out[:, :1]) * there).to_event(1),
                    infer={"baseline": {"baseline_value": value}},
                )
                loc, scale = out[:, 1 : 1 + self.latents], softplus(out[:, 1 + self.latents :])
                what = pyro.sample(f"z_what_{t}", dist.Normal(loc, scale).mask(there).to_event(1))


@example("examples/air/air.py")
def attend_infer_repeat() -> Example:
    net = Attend()
    return Example(
        model=net.model,
        guide=net.guide,
        args=(images(20, 12), 8),
        loss=TraceGraph_ELBO,
        optim=lambda: Adam({"lr": 1e-4}),
    )


# ------------------------------------------------------------------------------------- causal effect autoencoder
class Effects(nn.Module):
    """A hidden confounder, a treatment and an outcome; the guide shares its body between the arms."""

    def __init__(self, features: int = 4, latents: int = 2) -> None:
        super().__init__()
        self.latents = latents
        self.x_net = nn.Linear(latents, 2 * features)
        self.t_net = nn.Linear(latents, 1)
        self.y_nets = nn.ModuleList([nn.Linear(latents, 1), nn.Linear(latents, 1)])
        self.q_t, self.q_y = nn.Linear(features, 1), nn.Linear(features, 2)
        self.q_z = Encoder(features + 2, 8, latents)

    def model(self, x, t=None, y=None, size=None):
        pyro.module("effects", self)
        with pyro.plate("data", size, subsample=x):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latents), torch.ones(self.latents)).to_event(1))
            loc, scale = half(self.x_net(z))
            pyro.sample("x", dist.Normal(loc, softplus(scale) + 0.1).to_event(1), obs=x)
            t = pyro.sample("t", dist.Bernoulli(logits=self.t_net(z).squeeze(-1)), obs=t)
            y0, y1 = (net(z).squeeze(-1) for net in self.y_nets)
            pyro.sample("y", dist.Normal(torch.where(t > 0, y1, y0), 1.0), obs=y)

    def guide(self, x, t=None, y=None, size=None):
        with pyro.plate("data", size, subsample=x):
            t = pyro.sample("t", dist.Bernoulli(logits=self.q_t(x).squeeze(-1)), obs=t, infer={"is_auxiliary": True})
            arms = self.q_y(x)
            mean = torch.where(t > 0, arms[..., 1], arms[..., 0])
            y = pyro.sample("y", dist.Normal(mean, 1.0), obs=y, infer={"is_auxiliary": True})
            loc, scale = self.q_z(torch.cat([x, t[..., None], y[..., None]], -1))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


class CausalEffectElbo(Trace_ELBO):
    """The bound, and beside it what the guide says of the sites that it observes."""

    def _differentiable_loss_particle(self, model_trace, guide_trace):
        seen = [n for n, s in guide_trace.nodes.items() if s["type"] == "sample" and s["is_observed"]]
        latent = guide_trace.copy()
        for name in seen:
            del latent.nodes[name]
        loss, surrogate = super()._differentiable_loss_particle(model_trace, latent)
        guide_trace.compute_log_prob()
        told = sum(guide_trace.nodes[name]["log_prob_sum"] for name in seen)
        return loss - torch_item(told), surrogate - told


@example("examples/contrib/cevae/synthetic.py")
def causal_effects() -> Example:
    net = Effects()
    x = torch.randn(24, 4, generator=generator())
    t = (x[:, 0] > 0).float()
    y = x[:, 1] + t
    return Example(model=net.model, guide=net.guide, args=(x, t, y), kwargs={"size": 24}, loss=CausalEffectElbo)


# -------------------------------------------------------------------------------------------------- topics, words
class Topics(nn.Module):
    """Bags of words; dropout and batch normalisation without scale, as in ProdLDA."""

    def __init__(self, words: int = 12, topics: int = 3) -> None:
        super().__init__()
        self.topics = topics
        self.beta = nn.Linear(topics, words, bias=False)
        self.norm = nn.BatchNorm1d(words, affine=False)
        self.drop = nn.Dropout(0.2)
        self.body = nn.Sequential(nn.Linear(words, 8), nn.Softplus(), nn.Dropout(0.2))
        self.loc, self.logvar = nn.Linear(8, topics), nn.Linear(8, topics)

    def model(self, docs):
        pyro.module("decoder", self)
        with pyro.plate("documents", docs.shape[0]):
            prior = dist.Normal(docs.new_zeros(docs.shape[0], self.topics), 1.0).to_event(1)
            theta = pyro.sample("logtheta", prior).softmax(-1)
            probs = self.norm(self.beta(self.drop(theta))).softmax(-1)
            total = int(docs.sum(-1).max())
            pyro.sample("obs", dist.Multinomial(total, probs, validate_args=False), obs=docs)

    def guide(self, docs):
        pyro.module("encoder", self)
        with pyro.plate("documents", docs.shape[0]):
            h = self.body(docs)
            pyro.sample("logtheta", dist.Normal(self.loc(h), (0.5 * self.logvar(h)).exp()).to_event(1))


@example("tutorial prodlda")
def topics() -> Example:
    net = Topics()
    docs = torch.poisson(2 * torch.rand(16, 12, generator=generator()), generator=generator(1))
    return Example(model=net.model, guide=net.guide, args=(docs,), loss=TraceMeanField_ELBO)
