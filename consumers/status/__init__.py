"""What a federation waits for, who is there and who is away: pure, on one screen."""
