"""Hand-written training of LeNet with batch norm on scikit-learn's digits for one epoch; the reference of start_up.py.

It evaluates nothing and saves nothing. `benchmarks/start_up.py` runs it in a separate process.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

BATCH_SIZE = 64

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
targets = torch.tensor(digits.target)
images, targets = images[:1437], targets[:1437]  # the size of the training split of `data=digits`
images = (images - images.mean()) / images.std()

model = nn.Sequential(
    nn.Conv2d(1, 20, 5, padding=2, bias=False),
    nn.BatchNorm2d(20),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(20, 50, 5, padding=2, bias=False),
    nn.BatchNorm2d(50),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(200, 500, bias=False),
    nn.BatchNorm1d(500),
    nn.ReLU(),
    nn.Linear(500, 10),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
for indices in torch.randperm(len(images)).split(BATCH_SIZE):
    loss = F.cross_entropy(model(images[indices]), targets[indices])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.4f}")
