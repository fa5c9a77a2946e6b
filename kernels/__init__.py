"""The operations that every floor above shares, each in one file with its plain reference.

Nothing here knows of models or files. `occlude` puts occluders on pictures, `margin_loss` is the training objective,
`occluder_step` the update and `score` the verdict on logits.
"""
