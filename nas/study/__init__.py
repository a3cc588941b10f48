"""The search: durable studies, samplers, budgets, workers, NetAdapt."""
