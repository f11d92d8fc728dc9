from mtmh.retrieval.query import Query as Query
from mtmh.retrieval.retriever import Retriever as Retriever
from mtmh.start.model import Model as Model
from mtmh.start.model import fit as fit
from mtmh.start.model import load as load

__version__: str
