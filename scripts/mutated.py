"""Which tests hold the mathematics of each module: those that `make mutants` runs for a change in it."""

CHAINS = [f"processes/test_{name}.py" for name in ("chain_noise", "progressive", "progressive_stages", "pool")]
ENUMERATED = [
    f"testing/test_enumeration.py::test_{name}"
    for name in (
        "mirroring_below_a_rate_is_unbiased",
        "rates_and_their_complements_cover_all_rates_where_the_elbo_takes_them",
    )
]
BLOCKS = [
    f"processes/test_blockwise.py::test_{name}"
    for name in (
        "unfolding_undoes_folding",
        "bad_options_are_refused",
        "the_first_block_of_a_row_keeps_its_number_and_the_others_have_their_own",
        "blocks_of_a_row_have_rates_of_their_own",
        "strata_are_over_the_blocks_of_the_batch",
        "antithetic_pairs_are_blocks_next_to_one_another",
        "mirrored_rows_share_the_rates_of_their_blocks_and_hide_as_little_as_they_can_twice",
        "rows_drawn_by_importance_work_with_independent_blocks_alone",
        "every_block_is_a_chain_and_a_row_stays_until_all_its_blocks_have_ended",
        "a_block_as_long_as_the_row_is_no_block_to_the_last_bit",
        "chains_of_one_block_are_those_of_rows_to_the_last_bit",
        "a_change_of_size_begins_the_pool_anew_with_the_next_rows",
    )
]
POOL = [
    f"processes/test_pool.py::test_{name}"
    for name in (
        "the_pool_of_our_choice_is_32_batches_but_no_more_than_the_data",
        "a_pool_that_is_no_multiple_of_the_batch_is_refused_with_one_that_is",
        "a_process_has_the_pool_that_its_config_says",
        "what_is_drawn_are_the_chains_whose_turn_it_is_and_no_other_moves",
        "a_pool_whose_rows_have_changed_is_refused",
        "neither_a_saved_nor_a_loaded_state_moves_on_with_the_run",
        "a_run_resumed_from_a_file_within_a_sweep_goes_on_bit_for_bit",
        "new_rows_come_as_chains_end_and_no_more_than_the_batch_a_step",
    )
]
LONGER = "processes/test_blockwise.py::test_rows_longer_than_any_before_join_the_pool"
# The quickest first: the first that fails ends a mutant.
TESTS = {
    "batch": ["test_batch.py", "test_objectives.py"],
    "masks": ["test_masks.py", *ENUMERATED],
    "times": [
        "test_times.py",
        "processes/test_refit.py",
        "evaluation/test_coverage.py::test_the_effective_sample_size_is_that_of_drawn_weights",
    ],
    "objectives": ["test_objectives.py", "testing/test_enumeration.py"],
    "reweighted": ["test_reweighted.py"],
    "token_rates": ["test_token_rates.py"],
    "policies": ["test_policies.py", "processes/test_guides.py"],
    "schedules": ["test_schedules.py"],
    "noise": ["test_noise.py"],
    "processes/chains": [*CHAINS, "processes/test_guides.py"],
    "processes/progressive": [CHAINS[0], *POOL, *BLOCKS[-2:], LONGER],
    "processes/blocks": BLOCKS,
    "processes/blockwise": ["processes/test_causal_rows.py", *BLOCKS, "processes/test_blockwise_ranks.py"],
    "processes/independent": ["processes/test_independent.py", "testing/test_enumeration.py"],
    "processes/epr": ["processes/test_ppots.py"],
    "processes/ppots": ["processes/test_ppots.py"],
    "models/head": ["models/test_head.py", "models/test_padded_vocabulary.py", "models/test_lora.py"],
}
