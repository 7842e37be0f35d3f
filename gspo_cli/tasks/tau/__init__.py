"""The retail shop that tau-bench and tau2-bench share: records, tools, replay of gold actions, tickets."""
