"""The deployed form of a model: what only training needs, folded into weights."""

from convattn.deploy.parity import parity as parity
from convattn.deploy.reparameterize import reparameterize as reparameterize
