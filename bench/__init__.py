"""How fast is fcdense here? Dense layers and whole training steps, on the CPU, on the GPU and beside other libraries.

Run it with `python -m bench` from a checkout, or with `python -m fcdense.bench` where fcdense is installed.
"""
