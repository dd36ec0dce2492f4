"""Which layer, pooling or pooler suits the user's labels.

| step | `embedkit sweep` | `embedkit fit` |
| --- | --- | --- |
| the command from start to end | run_sweep | run_fit |
| rows, labels, near-duplicates | labelled_rows, labels, near_duplicates | the same |
| folds, or training, validation and test rows | splits | splits |
| encoding | sweep_models (poolings), encode_states (tokens) | encode_states |
| candidates | candidates, pooler_candidates | none |
| training | probe (linear), train_pooler | train_pooler, unsupervised |
| the score of a fold | cross_validation, metrics | train_pooler |
| the choice and its intervals | judge_candidates, verdict, bootstrap | none |
| the winner on all rows | final_probe, evaluation, sweep_winner | none |
| files | sweep_folder, sweep_files, sweep_charts | run_fit |
"""
