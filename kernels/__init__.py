"""Operations that every floor above shares, one file each, with the plain reference beside its Triton kernels.

Nothing here depends on models or files. `occlude` adds occluders to pictures (`pairs` says which meet,
`occlude_backward` is the gradient), `margin_loss` is the training objective, `momentum_step` and `adam_step` update the
occluders within their `ball`, and `score` evaluates logits. `impl` chooses between Triton and the reference; `compile`
compiles all kernels without a GPU.
"""
