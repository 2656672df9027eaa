package main

// seedMarket is a market as it opens. Questions are invented; so is everything they name.
type seedMarket struct {
	id, title, question, category, rules string
	liquidity                            int64 // shares: the b of the market maker
	price                                int64 // of yes, in millionths
}

var seedMarkets = []seedMarket{
	{
		"harbor-tunnel", "Harbor Tunnel open by autumn", "Will the Harbor Tunnel open before the autumn?", "Transport",
		"Yes if both tubes carry public traffic before the first day of autumn.", 4200, 614_000,
	},
	{
		"spring-tide", "Spring tide above 4.2 metres", "Will the spring tide at Ellery Point top 4.2 metres?", "Weather",
		"Yes if the Ellery Point gauge reads more than 4.20 m at any time this month.", 3200, 372_000,
	},
	{
		"sparrow-probe", "Sparrow-3 image this week", "Will the Sparrow-3 probe send its first image this week?", "Space",
		"Yes if mission control publishes an image taken by the probe before Sunday midnight.", 3000, 783_000,
	},
	{
		"night-trains", "Night trains 90% punctual", "Will night trains reach 90% punctuality this quarter?", "Transport",
		"Yes if at least 90% of night services arrive within ten minutes of plan.", 4600, 285_000,
	},
	{
		"car-free-centre", "Car-free centre plan passes", "Will the council pass the car-free centre plan?", "Civic",
		"Yes if the plan is adopted at third reading, with or without amendments.", 3800, 548_000,
	},
	{
		"wheat-240", "Wheat above 240 on Friday", "Will wheat close above 240 a tonne on Friday?", "Commodities",
		"Yes if the front-month contract settles above 240.00.", 3400, 447_000,
	},
	{
		"northern-grid", "A full day on renewables", "Will the northern grid run a full day on renewables?", "Energy",
		"Yes if no fossil plant feeds the grid for 24 hours in a row this season.", 3600, 688_000,
	},
	{
		"wrenhaven-top-four", "Wrenhaven in the top four", "Will Wrenhaven finish in the top four?", "Sport",
		"Yes if the club is fourth or better when the last match is played.", 4000, 231_000,
	},
}
