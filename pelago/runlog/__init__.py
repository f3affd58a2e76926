"""What nodes wrote down of a run, as typed objects: event logs (`events.jsonl`) and the histories of servers."""
