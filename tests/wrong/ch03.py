"""Mistakes people really make in the exercises of chapter 03, and what they must be told."""

import torch
import torch.nn.functional as F

from flcourse import metrics


def longest(w):
    return w[w.norm(dim=1).argmax()]


def gap(made, sent):
    a, b = (torch.cat([g.flatten() for g in gradient]) for gradient in (made, sent))
    return 1 - F.cosine_similarity(a, b, dim=0)


def matched(distance=gap, *, graph=True, wanted="distance", flip=False):
    """A right answer to 03.2 with one thing changed."""

    def answer(model, sent, picture, label):
        picture = picture.clone().requires_grad_()
        loss = F.cross_entropy(model(picture), label)
        parameters = list(model.parameters())
        made = torch.autograd.grad(loss, parameters, create_graph=graph)
        value = distance(made, sent)
        (slope,) = torch.autograd.grad(value if wanted == "distance" else loss, picture)
        return value.detach(), -slope if flip else slope

    return answer


def forgot_to_require(model, sent, picture, label):
    loss = F.cross_entropy(model(picture), label)
    made = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    value = gap(made, sent)
    return value, torch.autograd.grad(value, picture)[0]


def squares(made, sent):
    return sum((a - b).square().sum() for a, b in zip(made, sent, strict=True))


def per_layer(made, sent):
    pairs = list(zip(made, sent, strict=True))
    return sum(1 - F.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in pairs) / len(
        pairs
    )


def not_divided(made, sent):
    return 1 - sum((a * b).sum() for a, b in zip(made, sent, strict=True))


def global_ssim(a, b):
    c1, c2 = 0.01**2, 0.03**2
    covariance = ((a - a.mean()) * (b - b.mean())).mean()
    top = (2 * a.mean() * b.mean() + c1) * (2 * covariance + c2)
    spread = a.var(correction=0) + b.var(correction=0)
    return top / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (spread + c2))


def reported(*, early=False, one_statistic=False, by_truth=False, clamp=True, units=True):
    """The report of 03.3 with the flaws that are switched on."""

    def answer(truth, restarts, losses, mean, std):
        pictures = restarts.clamp(0, 1) if early else restarts
        pictures = pictures * std + mean if units else pictures
        pictures = pictures.clamp(0, 1) if clamp and not early else pictures
        errors = (pictures - truth).square().flatten(1).mean(1)
        best = errors.argmin() if by_truth else losses.argmin()
        psnr = -10 * errors[best].log10()
        chosen = pictures[best]
        if one_statistic:
            return psnr, global_ssim(truth[0], chosen)
        return psnr, metrics.ssim(truth, chosen[None])[0]

    return answer


WRONG = {
    "03.1": [
        ("first row", lambda w: w[0] / w[0][w[0].abs().argmax()], "NaN or infinity"),
        ("last row", lambda w: w[-1] / w[-1].max(), "rounding"),
        ("row of the largest sum",
         lambda w: w[w.sum(1).argmax()] / w[w.sum(1).argmax()].max(), "rounding"),
        ("mean of divided rows",
         lambda w: (w.abs() / w.abs().amax(1, keepdim=True)).nanmean(0), "counts the same"),
        ("mean of the rows", lambda w: w.mean(0) / w.mean(0).abs().max(), "sums of rows cancel"),
        ("not divided", longest, "as it stands"),
        ("length one", lambda w: longest(w) / longest(w).norm(), "length 1"),
        ("largest without abs", lambda w: longest(w) / longest(w).max(), "nearest to 0"),
        ("size without sign", lambda w: longest(w) / longest(w).abs().max(), "negative"),
        ("contrast stretched",
         lambda w: (longest(w).abs() - longest(w).abs().min())
         / (longest(w).abs().max() - longest(w).abs().min()), "stretched"),
        ("all rows", lambda w: w / w.abs().amax(1, keepdim=True), "choose the one"),
    ],
    "03.2": [
        ("no second derivative", matched(graph=False), "create_graph"),
        ("picture does not require grad", forgot_to_require, "requires_grad_"),
        ("the cosine itself", matched(lambda m, s: 1 - gap(m, s)), "1 - cosine"),
        ("squared distance", matched(squares), "depends on the message's length"),
        ("a cosine per layer", matched(per_layer), "one cosine over all"),
        ("not divided", matched(not_divided), "not divided"),
        ("slope of the loss", matched(wanted="loss"), "training loss"),
        ("descent for slope", matched(flip=True), "opposite sign"),
        ("distance only", lambda *a: matched()(*a)[0], "two things"),
    ],
    "03.3": [
        ("as it stood", reported(early=True, one_statistic=True, by_truth=True), "all three"),
        ("clamp repaired", reported(one_statistic=True, by_truth=True), "two flaws"),
        ("clamp left", reported(early=True), "model's units"),
        ("SSIM left", reported(one_statistic=True), "whole picture"),
        ("choice left", reported(by_truth=True), "needs the truth"),
        ("no clamp", reported(clamp=False), "not clamped"),
        ("units not undone", reported(units=False), "still the model's"),
        ("PSNR only", lambda *a: reported()(*a)[0], "two numbers"),
    ],
}  # fmt: skip
