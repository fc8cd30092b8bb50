"""The protocols of `vssl eval`, one file each; trainer.evaluate.PROTOCOLS names them."""
