"""Backbones, one file per family, registered with timm when this package is imported."""

from convattn.models import deit as deit
from convattn.models import glnet as glnet
from convattn.models import pvt as pvt
from convattn.models import resnet as resnet
from convattn.models import san as san
from convattn.models import swin as swin
from convattn.models._complexity import PaperRow as PaperRow
from convattn.models._complexity import count_call_macs as count_call_macs
from convattn.models._complexity import count_macs as count_macs
from convattn.models._complexity import count_parameters as count_parameters
from convattn.models._complexity import paper_row as paper_row
from convattn.models._complexity import paper_rows as paper_rows
from convattn.models._registry import create_model as create_model
from convattn.models._registry import is_single_path as is_single_path
from convattn.models._registry import list_models as list_models
from convattn.models.official import LoadReport as LoadReport
from convattn.models.official import load_official as load_official
