"""Adapters: small trees that stand for changes of a model."""

from merging.adapters.dense import Adapter as Adapter
from merging.adapters.dense import apply as apply
from merging.adapters.dense import delta as delta
from merging.adapters.dense import LeafAdapter as LeafAdapter
from merging.adapters.factoring import extract as extract
from merging.adapters.factoring import Factored as Factored
from merging.adapters.kronecker import init_kronecker as init_kronecker
from merging.adapters.kronecker import Kronecker as Kronecker
from merging.adapters.kronecker import kronecker_factors as kronecker_factors
from merging.adapters.kronecker import kronecker_rank as kronecker_rank
from merging.adapters.kronecker import kronecker_sum as kronecker_sum
from merging.adapters.kronecker import KroneckerFactors as KroneckerFactors
from merging.adapters.lora import init_lora as init_lora
from merging.adapters.lora import Lora as Lora
from merging.adapters.merge import merge_adapters as merge_adapters
from merging.adapters.merge import merge_to_adapter as merge_to_adapter
from merging.adapters.reversible import compress as compress
from merging.adapters.reversible import restore as restore
from merging.adapters.reversible import Reversible as Reversible
from merging.adapters.reversible import storage_ratio as storage_ratio
from merging.adapters.shards import gather_shards as gather_shards
from merging.adapters.shards import init_shards as init_shards
