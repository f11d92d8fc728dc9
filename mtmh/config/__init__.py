"""The settings of a run: one validated tree, a section a stage, filled by recipes (``recipe.py``)."""

from mtmh.config.base import Fraction, NonNegative, Positive, Settings
from mtmh.config.chain import ChainConfig, JobConfig, StageName
from mtmh.config.content import BackboneConfig, ContentCheckConfig, ContentConfig, EncoderConfig, EncoderTrainingConfig
from mtmh.config.data import DataConfig, PairsConfig, SimWeightConfig, SplitConfig, TableColumns
from mtmh.config.model import HeadConfig, IdTableConfig, ModelConfig
from mtmh.config.preranker import PrerankerConfig, PrerankerTrainingConfig, TaskConfig
from mtmh.config.recipe import Config, PathsConfig, load_config, recipe_names, variant_names
from mtmh.config.service import ServiceConfig
from mtmh.config.serving import EmbeddingConfig, EvaluationConfig, IndexConfig, MilvusConfig, PqConfig, RetrievalConfig
from mtmh.config.training import (
    CommunicationConfig,
    LossConfig,
    PlanConfig,
    PropensityConfig,
    SemanticConfig,
    ShardingConfig,
    ShardingType,
    TrainingConfig,
)

__all__ = [
    "BackboneConfig",
    "ChainConfig",
    "CommunicationConfig",
    "Config",
    "ContentCheckConfig",
    "ContentConfig",
    "DataConfig",
    "EmbeddingConfig",
    "EncoderConfig",
    "EncoderTrainingConfig",
    "EvaluationConfig",
    "Fraction",
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
    "load_config",
    "recipe_names",
    "variant_names",
]
