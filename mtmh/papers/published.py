"""Figures that the MTMH paper (2506.06239) publishes, in percent."""

from __future__ import annotations

from mtmh.papers.models import CONTENT, MTMH, MULTIMODAL_WEIGHT, input_name, semantic_name, weight_name

COLUMNS = ("recall@5", "recall@20", "recall@100", "recall@500", "L1 match", "L2 match")

H1, H2, SHARED = "MTMH-H1", "MTMH-H2", "MTMH, shared preranking"
CO_ENGAGEMENT = "co-engagement"

TABLE_1: dict[str, tuple[float, ...]] = {
    "ItemCF": (1.01, 2.50, 6.89, 14.88, 21.31, 17.90),
    "NeuCF": (1.10, 2.73, 7.51, 16.33, 25.77, 22.40),
    "MoL": (1.10, 2.75, 7.49, 16.05, 27.70, 24.74),
    "HLLM": (1.08, 2.67, 7.35, 16.07, 28.63, 26.25),
    "HSTU": (1.05, 2.68, 6.46, 15.21, 24.56, 22.83),
    MTMH: (1.10, 2.76, 7.65, 17.02, 30.17, 28.02),
}

TABLE_2: dict[str, tuple[float, ...]] = {
    MTMH: TABLE_1[MTMH],
    H1: (1.11, 2.77, 7.57, 16.16, 28.58, 25.73),
    H2: (1.12, 2.72, 6.61, 11.37, 34.70, 33.73),
    "MTSH": (1.14, 2.79, 7.09, 13.35, 34.15, 33.04),
    "STMH": (1.11, 2.75, 7.64, 14.31, 28.97, 27.84),
}

# Relative to w_r = 0.5: recall@500, L1 and L2 match.
TABLE_4: dict[str, tuple[float, float, float]] = {
    weight_name(0.0): (-2.99, -13.57, -19.87),
    weight_name(0.25): (0.96, -3.81, -5.54),
    weight_name(1.0): (-0.09, 3.07, 4.45),
    weight_name(5.0): (-7.38, 9.01, 13.22),
}

# Recall@500 and match; of the content encoder's recall the paper says "less than 1 %".
FIGURE_1: dict[str, tuple[float, float]] = {CO_ENGAGEMENT: (16.3, 22.4), CONTENT: (1.0, 37.5)}

# Recall@10 and NDCG@10 on Amazon Sports, as computed or quoted by github.com/blondered/transformer_benchmark (2b03992).
LEAVE_ONE_OUT: dict[str, tuple[float, float]] = {
    "SASRec, sampled softmax (run)": (5.69, 3.14),
    "eSASRec (run)": (5.60, 3.23),
    "HSTU (run)": (4.37, 2.43),
    "FuXi-alpha (run)": (4.37, 2.44),
    "ActionPiece (quoted)": (5.00, 2.64),
    "TIGER (quoted)": (4.00, 2.25),
    "SASRec, its own loss (quoted)": (3.50, 1.92),
}

# Related-video paper (2507.09403), table I: engagement and relevance as it measures them; the other ratios were not
# at hand. The first is the model without the semantic task.
RELATED_1: dict[str, tuple[float, float]] = {"NeuCF": (39.0, 35.1), semantic_name(0.5): (37.9, 46.9)}
# Table II: the semantic task alone, and with text and video as inputs; its rows of one input were not at hand.
RELATED_2: dict[str, tuple[float, float]] = {
    semantic_name(MULTIMODAL_WEIGHT): (37.9, 46.9),
    input_name("both"): (38.3, 52.0),
}
# Table III: relevance for the least popular tenth of triggers, without and with propensity weights.
RELATED_3: dict[str, tuple[float]] = {"MTMH, propensity none": (34.3,), MTMH: (41.5,)}
