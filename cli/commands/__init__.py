"""Commands and their options; the code behind them is imported when they run."""
