"""The zoo: one tiny checkpoint of every architecture that Winnow promises to treat, taken through all of its stages and
compared with plain transformers in a process that never heard of Winnow."""
