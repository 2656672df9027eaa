// Package lmsr is an automated market maker for a question with two answers: the logarithmic market scoring rule.
//
// The maker quotes a price for YES and for NO at any time, sells and buys any number of shares at the price its cost
// function gives, and can lose at most a fixed amount. Each share of the right answer pays one unit of money.
//
//	C(yes, no)  = b · ln(e^(yes/b) + e^(no/b))     what the maker has taken in for the shares outstanding
//	price(yes)  = 1 / (1 + e^((no-yes)/b))         and price(no) = 1 - price(yes)
//
// Money and shares are integers, in millionths ([Unit]); prices are integers, in millionths of a unit, and the prices
// of the two answers add up to one exactly. Rounding is always in the maker's favour, so no sequence of trades that
// ends where it began makes money out of rounding. Functions are pure and safe for concurrent use.
package lmsr

import (
	"errors"
	"math"
)

// Unit is one unit of money, or one share, or a price of one: all three are counted in millionths.
const Unit = 1_000_000

// The limits of the maker.
const (
	// MinPrice and MaxPrice are as far as the maker goes: beyond them a share costs next to nothing, and the formula
	// loses digits. A trade that would end outside is refused with ErrPriceLimit.
	MinPrice = Unit / 100
	MaxPrice = Unit - MinPrice
	// MaxAmount is the most money or shares in one trade. It keeps every product of the formula far from 2^53.
	MaxAmount = 1_000_000 * Unit
)

// Errors of a quote.
var (
	ErrAmount     = errors.New("lmsr: amount must be from one millionth to one million")
	ErrPriceLimit = errors.New("lmsr: the trade would move the price past the maker's limit")
)

// Side is one of the two answers.
type Side uint8

// The two answers.
const (
	Yes Side = iota + 1
	No
)

// Book is the state of the maker: its liquidity and the shares outstanding of each answer.
type Book struct {
	Liquidity int64 // the b of the formula, in millionths of a share: the larger, the less a trade moves the price
	Yes, No   int64 // shares outstanding, in millionths
}

// At is a book whose price is p (of YES) and in which no more shares are outstanding than that takes.
func At(liquidity int64, p int64) Book {
	x := float64(p) / Unit
	d := int64(math.Round(float64(liquidity) * math.Log(x/(1-x))))
	if d >= 0 {
		return Book{Liquidity: liquidity, Yes: d}
	}
	return Book{Liquidity: liquidity, No: -d}
}

// Price is the price of a side, in millionths. The prices of the two sides add up to [Unit].
func (k Book) Price(s Side) int64 {
	yes := int64(math.Round(k.price(Yes) * Unit))
	if s == Yes {
		return yes
	}
	return Unit - yes
}

func (k Book) price(s Side) float64 {
	d := float64(k.Yes-k.No) / float64(k.Liquidity)
	if s == No {
		d = -d
	}
	return 1 / (1 + math.Exp(-d))
}

// Buy is what shares of a side cost, rounded up, and the book after it.
func (k Book) Buy(s Side, shares int64) (cost int64, after Book, err error) {
	if shares <= 0 || shares > MaxAmount {
		return 0, k, ErrAmount
	}
	after = k.add(s, shares)
	if !after.inRange() {
		return 0, k, ErrPriceLimit
	}
	return int64(math.Ceil(k.change(s, shares))), after, nil
}

// Sell is what the maker pays for shares of a side, rounded down, and the book after it.
func (k Book) Sell(s Side, shares int64) (proceeds int64, after Book, err error) {
	if shares <= 0 || shares > MaxAmount {
		return 0, k, ErrAmount
	}
	after = k.add(s, -shares)
	if !after.inRange() {
		return 0, k, ErrPriceLimit
	}
	return int64(math.Floor(-k.change(s, -shares))), after, nil
}

// SharesFor is how many shares of a side an amount of money buys: the inverse of Buy. The cost is at most the amount,
// and one millionth of a share more would cost more than it.
func (k Book) SharesFor(s Side, amount int64) (shares int64, err error) {
	if amount <= 0 || amount > MaxAmount {
		return 0, ErrAmount
	}
	b := float64(k.Liquidity)
	if float64(amount)/b > maxExponent {
		return 0, ErrPriceLimit
	}
	shares = int64(b * math.Log1p(math.Expm1(float64(amount)/b)/k.price(s)))
	if shares > MaxAmount {
		return 0, ErrPriceLimit
	}
	// The formula is exact to a few millionths; the two loops, to the last.
	for shares > 0 && k.cost(s, shares) > amount {
		shares--
	}
	for shares < MaxAmount && k.cost(s, shares+1) <= amount {
		shares++
	}
	if shares == 0 {
		return 0, ErrAmount // less than a millionth of a share
	}
	if !k.add(s, shares).inRange() {
		return 0, ErrPriceLimit
	}
	return shares, nil
}

// MaxLoss is the most the maker can lose from a book on, whatever is traded and whichever answer is right, not
// counting what it took in before.
func (k Book) MaxLoss() int64 {
	return int64(math.Ceil(float64(k.Liquidity) * -math.Log(min(k.price(Yes), k.price(No)))))
}

// maxExponent keeps e^x finite with room to spare; prices within the limits stay far below it.
const maxExponent = 300

func (k Book) cost(s Side, shares int64) int64 { return int64(math.Ceil(k.change(s, shares))) }

// change is C(after) - C(before), written so that small trades keep their digits.
func (k Book) change(s Side, shares int64) float64 {
	b := float64(k.Liquidity)
	x := float64(shares) / b
	if x > maxExponent {
		return math.Inf(1)
	}
	return b * math.Log1p(k.price(s)*math.Expm1(x))
}

func (k Book) add(s Side, shares int64) Book {
	if s == Yes {
		k.Yes += shares
	} else {
		k.No += shares
	}
	return k
}

func (k Book) inRange() bool {
	p := k.Price(Yes)
	return p >= MinPrice && p <= MaxPrice
}
