"""embedkit's own forward pass for the families of models that people use most, with torch alone.

families/           each family, described by data
config.py           config.json → NativeConfig, or the reason why transformers runs the model; by config_reader.py
rotation.py         rotary positions as config.json describes them; rotary.py computes them
checkpoint.py       the weights, by each family's names
linear.py, norm.py  linear layers in fp32 and in int8, and norms
attention.py        what a layer attends to: the place for other ways to make scores
layer.py            one layer over packed texts, by torch or by compiled kernels
compiled_layers.py  all layers in one call, where the weights are packed and a thread has a core for itself
kernels.cpp         these kernels, with attention.cpp and bf16_attention.cpp, and vectors.h, which they share;
                    attention by tiles of AMX, in fp32 as in bf16, is in tiled_attention.h;
                    compile_kernels.py builds them, check_kernels.py tests them, kernels.py calls them, with
                    structs.py for the structs that they take
*_products.cpp      matrix products in fp32, bf16 and int8, with panels.h, which they share, and tiles.h
                    and tile_products.h for AMX;
                    packed_products.py calls them, weight_memory.py holds what they pack, and
                    workspace.py what compiled code writes and reads again
native_encoder.py   embeddings and weights, shared by
cpu_encoder.py      the forward pass on a CPU, with thread_pool.py, and
gpu_encoder.py      the one on a GPU, with torch_compile.py
native_model.py     a folder → an encoder that was checked

A setting or a weight that is not known leaves the model to transformers.
"""
