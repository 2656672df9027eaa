package lmsr

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

// books yields books all over the range that the maker covers.
func books(t *testing.T, n int, f func(r *rand.Rand, k Book)) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	for range n {
		liquidity := int64(50+r.IntN(20_000)) * Unit
		k := At(liquidity, MinPrice+1000+r.Int64N(MaxPrice-MinPrice-2000))
		both := r.Int64N(2000) * Unit // the same number of both answers changes no price
		k.Yes += both
		k.No += both
		f(r, k)
	}
}

func side(r *rand.Rand) Side { return Side(1 + r.IntN(2)) }

func TestPricesSumToOne(t *testing.T) {
	books(t, 5000, func(_ *rand.Rand, k Book) {
		if sum := k.Price(Yes) + k.Price(No); sum != Unit {
			t.Fatalf("%+v: prices sum to %d, want %d", k, sum, Unit)
		}
	})
}

func TestAtGivesThePriceAskedFor(t *testing.T) {
	for _, p := range []int64{MinPrice, 123_456, 499_999, Unit / 2, 500_001, 871_000, MaxPrice} {
		k := At(3000*Unit, p)
		if k.Price(Yes) != p {
			t.Errorf("At(%d).Price = %d", p, k.Price(Yes))
		}
		if k.Yes < 0 || k.No < 0 {
			t.Errorf("At(%d) = %+v: shares outstanding below zero", p, k)
		}
	}
}

// TestCostFollowsTheDefinition compares with C(after) - C(before), written down as in the definition.
func TestCostFollowsTheDefinition(t *testing.T) {
	c := func(k Book) float64 {
		b := float64(k.Liquidity)
		hi, lo := float64(max(k.Yes, k.No)), float64(min(k.Yes, k.No))
		return hi + b*math.Log1p(math.Exp((lo-hi)/b))
	}
	books(t, 5000, func(r *rand.Rand, k Book) {
		s, shares := side(r), 1+r.Int64N(k.Liquidity/4)
		cost, after, err := k.Buy(s, shares)
		if err != nil {
			return
		}
		if want := c(after) - c(k); math.Abs(float64(cost)-want) > 1.5 {
			t.Fatalf("%+v: buy %d of %d costs %d, definition says %f", k, shares, s, cost, want)
		}
		back, home, err := after.Sell(s, shares)
		if err != nil {
			t.Fatalf("sell back: %v", err)
		}
		if home != k {
			t.Fatalf("round trip ends at %+v, began at %+v", home, k)
		}
		if back > cost || cost-back > 2 {
			t.Fatalf("%+v: bought for %d, sold for %d: a round trip costs from 0 to 2 millionths", k, cost, back)
		}
	})
}

func TestPriceLiesBetweenBeforeAndAfter(t *testing.T) {
	books(t, 5000, func(r *rand.Rand, k Book) {
		s, shares := side(r), (1+r.Int64N(50))*Unit
		cost, after, err := k.Buy(s, shares)
		if err != nil {
			return
		}
		before, then, average := k.Price(s), after.Price(s), cost*Unit/shares
		if before > then || average < before-1 || average > then+1 {
			t.Fatalf("%+v: price %d, then %d, paid %d a share", k, before, then, average)
		}
	})
}

func TestInverse(t *testing.T) {
	books(t, 5000, func(r *rand.Rand, k Book) {
		s, amount := side(r), 1+r.Int64N(k.Liquidity/8)
		shares, err := k.SharesFor(s, amount)
		if err != nil {
			if !errors.Is(err, ErrPriceLimit) && !(errors.Is(err, ErrAmount) && amount < 2) {
				t.Fatalf("%+v: SharesFor(%d): %v", k, amount, err)
			}
			return
		}
		cost, _, err := k.Buy(s, shares)
		if err != nil || cost > amount {
			t.Fatalf("%+v: %d shares for %d cost %d (%v)", k, shares, amount, cost, err)
		}
		if more := k.cost(s, shares+1); more <= amount {
			t.Fatalf("%+v: %d shares for %d, but one millionth more costs %d", k, shares, amount, more)
		}
	})
}

// TestLossIsBounded trades at random, then settles either way: the maker never loses more than MaxLoss of the book it
// began with, and no set of traders who end where they began has gained.
func TestLossIsBounded(t *testing.T) {
	books(t, 60, func(r *rand.Rand, start Book) {
		k, pool := start, int64(0)
		for range 1000 {
			s, shares := side(r), 1+r.Int64N(k.Liquidity/5)
			if r.IntN(2) == 0 {
				cost, after, err := k.Buy(s, shares)
				if err == nil {
					k, pool = after, pool+cost
				}
				continue
			}
			held := k.Yes - start.Yes
			if s == No {
				held = k.No - start.No
			}
			if shares > held {
				continue
			}
			proceeds, after, err := k.Sell(s, shares)
			if err == nil {
				k, pool = after, pool-proceeds
			}
		}
		for _, owed := range []int64{k.Yes - start.Yes, k.No - start.No} {
			if loss := owed - pool; loss > start.MaxLoss() {
				t.Fatalf("%+v: loss %d, bound %d", start, loss, start.MaxLoss())
			}
		}
		for held := k.Yes - start.Yes; held > 0; {
			step := min(held, MaxAmount, k.Liquidity/3)
			proceeds, after, err := k.Sell(Yes, step)
			if err != nil {
				break // YES at its lower limit: NO must go first; the money check below still holds
			}
			k, pool, held = after, pool-proceeds, held-step
		}
		for held := k.No - start.No; held > 0; {
			step := min(held, MaxAmount, k.Liquidity/3)
			proceeds, after, err := k.Sell(No, step)
			if err != nil {
				break
			}
			k, pool, held = after, pool-proceeds, held-step
		}
		if k == start && pool < 0 {
			t.Fatalf("%+v: everyone sold back and the maker is out by %d", start, -pool)
		}
	})
}

func TestRefusals(t *testing.T) {
	k := At(1000*Unit, Unit/2)
	for _, amount := range []int64{0, -1, math.MinInt64, MaxAmount + 1, math.MaxInt64} {
		if _, _, err := k.Buy(Yes, amount); !errors.Is(err, ErrAmount) {
			t.Errorf("Buy(%d): %v", amount, err)
		}
		if _, _, err := k.Sell(Yes, amount); !errors.Is(err, ErrAmount) {
			t.Errorf("Sell(%d): %v", amount, err)
		}
		if _, err := k.SharesFor(Yes, amount); !errors.Is(err, ErrAmount) {
			t.Errorf("SharesFor(%d): %v", amount, err)
		}
	}
	if _, after, err := k.Buy(Yes, 5000*Unit); !errors.Is(err, ErrPriceLimit) || after != k {
		t.Errorf("a purchase past the limit: %+v, %v", after, err)
	}
	if _, _, err := k.Sell(No, 5000*Unit); !errors.Is(err, ErrPriceLimit) {
		t.Errorf("a sale past the limit: %v", err)
	}
	if _, err := k.SharesFor(No, MaxAmount); !errors.Is(err, ErrPriceLimit) {
		t.Errorf("money past the limit: %v", err)
	}
	if _, err := At(Unit, Unit/2).SharesFor(No, MaxAmount); !errors.Is(err, ErrPriceLimit) {
		t.Errorf("money past the exponent: %v", err)
	}
}
