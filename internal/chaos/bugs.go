package main

import "context"

func runBug(ctx context.Context, name string) int { return 2 }
