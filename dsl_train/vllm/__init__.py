"""The learned lookahead inside vLLM, as a plugin of the group `vllm.general_plugins`."""
