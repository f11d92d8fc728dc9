"""The index artifact: built shard by shard, stored in several kinds, versioned and published."""
