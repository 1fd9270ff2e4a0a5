# %% [markdown]
# # 01 · Activation differences
