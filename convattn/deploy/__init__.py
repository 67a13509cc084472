"""The deployed form of a model: batch norms and other linear parts folded into weights."""

from convattn.deploy.parity import parity as parity
from convattn.deploy.reparameterize import reparameterize as reparameterize
