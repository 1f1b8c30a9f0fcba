"""The words that facts are made of; bAbI's names, places, verbs and objects are among them."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    """
    John Mary Sandra Daniel Fred Jeff Bill Julie
    Alice Amanda Andrew Anita Anthony Arthur Barbara Beatrix Benjamin Bernard Boris Brenda Bridget Bruno Carla
    Carmen Cecil Charles Clara Claude Colin Conrad Daphne David Deborah Dennis Diana Dominic Doris Edgar Edith Edwin
    Eleanor Elliot Emma Eric Esther Eugene Felix Fiona Flora Frank Gemma George Gilbert Gloria Grace Gregory Hannah
    Harold Harriet Hector Helen Henry Hilda Howard Hugo Irene Isaac Ivan Jacob James Jasmine Jerome Joan Jonathan
    Judith Karen Keith Kevin Laura Lawrence Leonard Lewis Linda Louise Lucas Lydia Mabel Marcus Margaret Martin
    Matilda Maurice Michael Miriam Monica Nathan Nigel Nora Norman Olga Oliver Oscar Pamela Patrick Paula Philip
    Rachel Ralph Rebecca Robert Roger Rosalind Rupert Sabrina Samuel Simon Sophie Stella Stephen Theodore Thomas
    Ursula Valerie Victor Vincent Violet Walter Wendy Yvonne
    """
)

PLACES = _words(
    """
    bathroom bedroom garden hallway kitchen office
    airport attic bakery balcony barn basement beach bridge canteen castle cave cellar chapel church cinema
    courtyard factory farm ferry forest gallery garage greenhouse gym harbour hospital hotel laboratory laundry
    library lighthouse lobby market mill museum nursery orchard palace pantry park pharmacy pier playground porch
    prison quarry school stable station studio tavern temple theatre tower tunnel village vineyard warehouse
    workshop zoo
    """
)

MOVES = ("went to", "journeyed to", "travelled to", "moved to", "went back to")

OBJECTS = _words(
    """
    apple football milk
    anchor arrow axe backpack ball bandage banjo basket bell belt blanket bottle bowl bracelet broom brush bucket
    camera candle cap coat coin comb compass cup dagger diamond diary drum envelope eraser fan feather flashlight
    flute fork glove hammer harp hat helmet jacket jar kettle kite ladder lamp lantern map medal mirror mug necklace
    needle newspaper notebook paintbrush pan pencil pillow puppet purse puzzle racket radio ring rope ruler saddle
    saw scarf scissors shovel skateboard spoon stamp suitcase sword teapot telescope torch towel trumpet umbrella
    vase violin wallet whistle
    """
)


TAKES = ("got", "grabbed", "took", "picked up", "found")

LOCKED_SIDES = _words("north south east west upper lower outer inner front back old new main hidden central")
LOCKED_THINGS = _words("gate door safe vault locker cabinet chest lift cupboard archive")

ATTRIBUTES = {
    "colour": _words(
        "red blue green yellow black white brown grey purple orange pink golden silver turquoise scarlet beige"
    ),
    "shape": _words("round square oval flat curved conical triangular cubic spiral hexagonal twisted pointed"),
    "size": _words("tiny small medium large huge gigantic miniature enormous"),
    "material": _words("wood stone iron glass clay copper leather marble plastic paper steel wool ivory bronze"),
    "origin": _words("Spain France Italy Egypt India China Japan Norway Mexico Peru Brazil Greece Turkey Canada"),
}

ATTRIBUTE_THINGS = _words(
    """
    boat box car carpet chair clock cradle curtain desk engine fence flag fountain guitar handle house key bench
    statue machine monument mosaic sofa parcel piano plate raft robot roof sculpture ship shutter sledge staircase
    stool table tent tile toy train tray trophy truck wagon wardrobe wheel windmill
    """
)

FAVOURITES = {
    "drink": _words("tea coffee water juice cider cocoa lemonade wine beer ginger soda rum"),
    "food": _words("bread cheese soup rice pasta fish salad pizza pudding stew bacon porridge pancakes sausages"),
    "animal": _words("dog cat horse tiger rabbit parrot elephant lion wolf fox bear owl dolphin monkey giraffe camel"),
    "game": _words("chess poker dominoes hopscotch bingo solitaire backgammon charades marbles darts"),
    "fruit": _words("pear plum cherry banana melon grape lemon peach mango fig apricot pineapple"),
    "sport": _words("tennis golf rowing boxing cricket swimming cycling skiing fencing hockey rugby sailing"),
    "tree": _words("oak birch maple willow pine cedar ash elm beech chestnut poplar spruce"),
}
