"""The settings of a run: one validated tree, a section a stage, filled by recipes (``recipe.py``)."""

from mtmh.config.base import Decides, Fraction, NonNegative, Positive, Settings, decisive
from mtmh.config.chain import ChainConfig, JobConfig, StageName
from mtmh.config.content import BackboneConfig, ContentCheckConfig, ContentConfig, EncoderConfig, EncoderTrainingConfig
from mtmh.config.data import DataConfig, PairsConfig, SimWeightConfig, SplitConfig, TableColumns, ValidationConfig
from mtmh.config.distributed import CommunicationConfig, ShardingConfig, ShardingType
from mtmh.config.evaluation import EvaluationConfig, Yardstick
from mtmh.config.index import IndexConfig, MilvusConfig, PqConfig
from mtmh.config.model import HeadConfig, IdTableConfig, ModelConfig
from mtmh.config.preranking import PrerankerConfig, PrerankerTrainingConfig, TaskConfig
from mtmh.config.recipe import Config, PathsConfig, load_config, recipe_names, variant_names
from mtmh.config.retrieval import RetrievalConfig
from mtmh.config.serving import AdaptiveAlphaConfig, ServiceConfig
from mtmh.config.tower import EmbeddingConfig
from mtmh.config.training import (
    GradNormConfig,
    LossConfig,
    PlanConfig,
    PropensityConfig,
    SemanticConfig,
    TrainingConfig,
)

__all__ = [
    "AdaptiveAlphaConfig",
    "BackboneConfig",
    "ChainConfig",
    "CommunicationConfig",
    "Config",
    "ContentCheckConfig",
    "ContentConfig",
    "DataConfig",
    "Decides",
    "EmbeddingConfig",
    "EncoderConfig",
    "EncoderTrainingConfig",
    "EvaluationConfig",
    "Fraction",
    "GradNormConfig",
    "HeadConfig",
    "IdTableConfig",
    "IndexConfig",
    "JobConfig",
    "LossConfig",
    "MilvusConfig",
    "ModelConfig",
    "NonNegative",
    "PairsConfig",
    "PathsConfig",
    "PlanConfig",
    "Positive",
    "PqConfig",
    "PrerankerConfig",
    "PrerankerTrainingConfig",
    "PropensityConfig",
    "RetrievalConfig",
    "SemanticConfig",
    "ServiceConfig",
    "Settings",
    "ShardingConfig",
    "ShardingType",
    "SimWeightConfig",
    "SplitConfig",
    "StageName",
    "TableColumns",
    "TaskConfig",
    "TrainingConfig",
    "ValidationConfig",
    "Yardstick",
    "decisive",
    "load_config",
    "recipe_names",
    "variant_names",
]
