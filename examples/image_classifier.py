"""A classifier of 28 x 28 images: Flatten, 784 -> 512 -> 512 -> 10, and a softmax over the ten classes."""

import numpy as np

import fcdense as fc

fc.manual_seed(0)
model = fc.nn.Sequential(
    fc.nn.Flatten(),
    fc.nn.Dense(512, activation="relu"),
    fc.nn.Dense(512, activation="relu"),
    fc.nn.Dense(10),
)
images = np.random.default_rng(0).random((3, 28, 28), dtype=np.float32)
logits = model(images)
probabilities = fc.nn.Softmax(axis=1)(logits)

print("images", images.shape, "-> logits", logits.shape)
print("sums of the probabilities:", probabilities.sum(axis=1).numpy().round(5))
print("predicted classes:", probabilities.numpy().argmax(axis=1))
for name, parameter in model.named_parameters():
    values = parameter.numpy().ravel()[:2]
    print(f"{name:16} {parameter.shape!s:10} begins with {values}")
print(model.summary((28, 28)))
