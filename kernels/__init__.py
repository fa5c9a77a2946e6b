"""The operations that every floor above shares, each in one file with its plain reference.

Nothing here knows of models or files. `occlude` puts occluders on pictures (`occlude_backward` is its gradient),
`margin_loss` is the training objective, `occluder_step` the update and `score` the verdict on logits. `impl` says
whether Triton or the reference runs; `compile` compiles all kernels without a GPU.
"""
