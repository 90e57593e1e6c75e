"""What the lesson says, in the language of its reader: English texts are the keys of one table.

The code of a notebook is the same in all languages: tools/sync_notebooks.py copies it, and puts its
comments and its form into the language by this table too.
"""

from __future__ import annotations

from typing import Any

from autoquant.core.errors import InputError

TURKISH: dict[str, str] = {
    # the form and the comments of the code
    "Install": "Kurulum",
    (
        "Installs AutoQuant and what this notebook needs. Does nothing if they are installed; "
        "changes no installed package (in Colab: none that Colab ships)."
    ): (
        "AutoQuant'ı ve bu defterin gerektirdiklerini kurar. Kuruluysalar bir şey yapmaz; "
        "kurulu hiçbir paketi değiştirmez (Colab'da: Colab ile gelenlerin hiçbirini)."
    ),
    "the first of each name is the one that Python imports": (
        "aynı addakilerin ilki, Python'ın yüklediğidir"
    ),
    "versions that pip accepts; some of Ubuntu's are not": (
        "pip'in kabul ettiği sürümler; Ubuntu'nun bazılarını kabul etmez"
    ),
    "an editable install: git pull updates it": "düzenlenebilir kurulum: git pull onu da günceller",
    "this kernel began before pip linked it": "bu çekirdek, pip bağlantıyı kurmadan önce başladı",
    "is ready": "hazır",
    "ipywidgets was just installed: reload this page once, so that the form below appears": (
        "ipywidgets şimdi kuruldu: aşağıdaki formun görünmesi için bu sayfayı bir kez yenileyin"
    ),
    "Settings": "Ayarlar",
    "weights of the model whose memory footprint is shown, in billions": (
        "bellek ayak izi gösterilen modelin ağırlık sayısı, milyar olarak"
    ),
    "the number whose bits are shown": "bitleri gösterilen sayı",
    "the layer of the bundled model that is looked at": "gömülü modelin incelenen katmanı",
    "of labels and hints": "yazıların ve ipuçlarının dili",
    "one thread: for matrices as small as these, two are slower": (
        "tek iş parçacığı: bu kadar küçük matrislerde ikisi daha yavaştır"
    ),
    "cut into chunks of 256 below": "aşağıda 256'lık parçalara bölünür",
    "[?, ?, ?, ?]": "[?, ?, ?, ?]",
    "weights: an array of any shape. Return its codes (whole numbers) and the scale": (
        "weights: herhangi biçimde bir dizi. Kodlarını (tam sayılar) ve ölçeği döndürün"
    ),
    "like activations: none far below zero": (
        "aktivasyonlar gibi: hiçbiri sıfırın çok altında değil"
    ),
    "where the largest weight is": "en büyük ağırlığın yeri",
    "three outlier columns": "üç aykırı sütun",
    "LLM.int8()'s threshold": "LLM.int8()'in eşiği",
    "4 bits: −7 … 7": "4 bit: −7 … 7",
    "codes: an array of n codes 0 … 15, n is even. Return n / 2 bytes (np.uint8)": (
        "codes: 0 … 15 arasında n kodluk dizi, n çift. n / 2 bayt (np.uint8) döndürün"
    ),
    "3 bits: 8 codes": "3 bit: 8 kod",
    "one input after the other": "girdi girdi",
    (
        "weights: [rows, columns]; inverse: [columns, columns], of the Hessian. Return the "
        "weights after the step"
    ): (
        "weights: [satır, sütun]; inverse: [sütun, sütun], Hesse matrisinin tersi. Adımdan "
        "sonraki ağırlıkları döndürün"
    ),
    "the same tokens for all": "hepsi için aynı token'lar",
    "of each token, in nats": "her token'ın, nat cinsinden",
    "log p(token), mean": "log p(token), ortalama",
    "a run of this cell that was stopped has left them rounded": (
        "bu hücre yarıda kesildiyse yuvarlanmış kalmışlardır"
    ),
    "not the text that we judge by": "değerlendirme yaptığımız metin değil",
    "half a bit for the scale": "ölçek için yarım bit",
    (
        "damage[part][bits] and size[part][bits] are the table above. Return a dictionary: "
        "bits for each part"
    ): (
        "damage[parça][bit] ve size[parça][bit] yukarıdaki tablodur. Bir sözlük döndürün: her "
        "parçanın bit sayısı"
    ),
    # what cells print, and the words of pictures
    "{count} weights; one matrix of layer {layer}: {shape}": (
        "{count} ağırlık; {layer}. katmanın bir matrisi: {shape}"
    ),
    "parameters": "parametre",
    "{billions} billion": "{billions} milyar",
    "weights of a model of {billions} billion parameters": (
        "{billions} milyar parametreli bir modelin ağırlıkları"
    ),
    "{gpu} ({size} GB) holds: {names}": "{gpu} ({size} GB) şunlara yeter: {names}",
    "4 bits": "4 bit",
    "3 bits": "3 bit",
    "2 bits": "2 bit",
    "error": "hata",
    "exponent": "üs",
    "mantissa": "mantis",
    "density": "yoğunluk",
    "{n} bits: {used} values are used": "{n} bit: {used} değer kullanılıyor",
    "zero point (z = {zero})": "sıfır noktası (z = {zero})",
    "absmax: −127 … 127 (drawn 127 to the right)": "absmax: −127 … 127 (127 sağa kaydırılmış)",
    "zero point: 0 … 255": "sıfır noktası: 0 … 255",
    "code": "kod",
    "values": "değer sayısı",
    "bits": "bit",
    "clipping": "kırpma",
    "zero point": "sıfır noktası",
    "weights per scale": "ölçek başına ağırlık",
    "no": "yok",
    "yes": "var",
    "weight": "ağırlık",
    "after rounding": "yuvarlanınca",
    "what the codes can stand for": "kodların gösterebildikleri",
    "relative error {lost}, {cost} bits per weight": "bağıl hata {lost}, ağırlık başına {cost} bit",
    "all in 8 bits": "hepsi 8 bit",
    "{some} of 256 columns in 16 bits": "256 sütunun {some} tanesi 16 bit",
    "mean error of an output": "bir çıktının ortalama hatası",
    "per tensor": "tensör başına",
    "per row": "satır başına",
    "scales": "ölçek",
    "relative error": "bağıl hata",
    "bits per weight": "ağırlık başına bit",
    "% of the weights": "ağırlıkların yüzdesi",
    "groups of 128": "128'lik gruplar",
    "groups of 32": "32'lik gruplar",
    "{size} weights share a scale": "bir ölçeği {size} ağırlık paylaşır",
    "rounded": "yuvarlanmış",
    "weights": "ağırlıklar",
    "activations": "aktivasyonlar",
    "both": "ikisi de",
    "unquantized": "nicemlenmemiş",
    "absmax, tensor": "absmax, tensör",
    "absmax, row": "absmax, satır",
    "absmax, 128": "absmax, 128",
    "zero point, 128": "sıfır noktası, 128",
    "{n} bits": "{n} bit",
    "“{prompt} …”, at so many bits": "“{prompt} …”, bit sayısına göre",
    "perplexity (lower is better)": "perplexity (küçük olan iyidir)",
    "part": "parça",
    "bytes at 3 bits": "3 bitte bayt",
    "budget: {budget} bytes, halfway between 2 and 3 bits everywhere": (
        "bütçe: {budget} bayt, her yerde 2 bit ile her yerde 3 bitin tam ortası"
    ),
    "layers 2 and 3 at 3 bits": "2. ve 3. katman 3 bit",
    "layers 0 and 1 at 3 bits": "0. ve 1. katman 3 bit",
    "your choice": "sizin seçiminiz",
    "{count} bytes": "{count} bayt",
    # what exercises say
    "… {name} is not answered yet": "… {name} henüz cevaplanmadı",
    "{wanted} numbers are asked for": "{wanted} sayı isteniyor",
    "Write a number with a point: 1.5": "Sayıyı noktayla yazın: 1.5",
    "for {case} it should be {expected}, not {answer}": (
        "{case} için doğrusu {expected}; sizinki {answer}"
    ),
    "for {case} your function stopped with {error}": (
        "fonksiyonunuz {case} için şu hatayla durdu: {error}"
    ),
    "These are gigabits: 8 bits are one byte.": "Bunlar gigabit: 8 bit, bir bayttır.",
    "These are 4 bits per weight; the scales take half a bit more.": (
        "Bu, ağırlık başına 4 bitle; ölçekler yarım bit daha tutar."
    ),
    "The largest code of 8 bits is 127: 2⁷ − 1.": "8 bitin en büyük kodu 127'dir: 2⁷ − 1.",
    "Round to the nearest whole number; do not cut off.": (
        "En yakın tam sayıya yuvarlayın; ondalık kısmı kesip atmayın."
    ),
    "Codes are whole numbers: round them.": "Kodlar tam sayıdır: yuvarlayın.",
    "A code is a whole number: round it.": "Kod bir tam sayıdır: yuvarlayın.",
    "z = round(−min / s): mind the sign of the smallest value.": (
        "z = round(−min / s): en küçük değerin işaretine dikkat."
    ),
    "The zero point takes room too.": "Sıfır noktası da yer tutar.",
    "64 weights share one scale and one zero point: divide by 64.": (
        "Bir ölçekle bir sıfır noktasını 64 ağırlık paylaşır: 64'e bölün."
    ),
    "Return two things: first the codes, then the scale.": (
        "İki şey döndürün: önce kodlar, sonra ölçek."
    ),
    "If all weights are 0 the scale becomes 0, and nothing can be divided by it: take 1.": (
        "Bütün ağırlıklar 0 ise ölçek de 0 olur ve hiçbir şey ona bölünemez: 1 alın."
    ),
    "The largest code is 2^(bits − 1) − 1, which is 127 at 8 bits: 2^(bits − 1) has no code.": (
        "En büyük kod 2^(bits − 1) − 1, yani 8 bitte 127'dir: 2^(bits − 1) için kod yoktur."
    ),
    (
        "2^bits − 1 is the number of steps of a range that begins at 0; here half of the codes "
        "are negative."
    ): (
        "2^bits − 1, 0'dan başlayan bir aralığın adım sayısıdır; burada kodların yarısı negatiftir."
    ),
    "Look at the largest |w|: the weight furthest from zero may be negative.": (
        "En büyük |w| değerine bakın: sıfıra en uzak ağırlık negatif olabilir."
    ),
    "These are the restored weights s · q: return the codes q.": (
        "Bunlar geri elde edilmiş ağırlıklar, s · q: q kodlarını döndürün."
    ),
    "Divide by the scale: q = round(w / s).": "Ölçeğe bölün: q = round(w / s).",
    "Return the bytes as one array.": "Baytları tek bir dizi olarak döndürün.",
    "The other way round: the first code of a pair goes into the low four bits.": (
        "Tam tersi: çiftin ilk kodu, düşük dört bite girer."
    ),
    (
        "Both codes lie in the same four bits: move the second one up by 4 bits (<< 4, or "
        "times 16)."
    ): (
        "İki kod da aynı dört bitte duruyor: ikincisini 4 bit yukarı kaydırın (<< 4 ya da 16 "
        "ile çarpma)."
    ),
    (
        "Here neighbours share a byte: codes 0 and 1, 2 and 3, … (The first half beside the "
        "second is what GGUF's Q4_0 does.)"
    ): (
        "Burada komşular aynı baytı paylaşır: 0 ile 1, 2 ile 3, … (İlk yarıyı ikinciyle "
        "eşleştiren, GGUF'un Q4_0 türüdür.)"
    ),
    "Still one byte per code: two codes go into each byte.": (
        "Her kod hâlâ bir bayt: her bayta iki kod girer."
    ),
    "The numbers are right, but each takes more than one byte: add .astype(np.uint8).": (
        "Sayılar doğru, ama her biri bir bayttan fazla tutuyor: .astype(np.uint8) ekleyin."
    ),
    "Return all weights after the step, in the shape they came in.": (
        "Adımdan sonraki bütün ağırlıkları, geldikleri biçimde döndürün."
    ),
    "The wrong sign: the other weights must make up for the error, not repeat it.": (
        "İşaret ters: öteki ağırlıklar hatayı yinelememeli, telafi etmeli."
    ),
    "Divide the error by inverse[0, 0] before you spread it.": (
        "Hatayı dağıtmadan önce inverse[0, 0]'a bölün."
    ),
    "Codes of 3 bits are −4 … 3: clip what is rounded (np.clip).": (
        "3 bitin kodları −4 … 3'tür: yuvarladığınızı kırpın (np.clip)."
    ),
    "Column 0 is rounded; now spread its error over the others.": (
        "0. sütun yuvarlandı; şimdi hatasını ötekilere dağıtın."
    ),
    "Only column 0 is rounded in this step; the turn of the others comes later.": (
        "Bu adımda yalnız 0. sütun yuvarlanır; ötekilerin sırası sonra gelir."
    ),
    "The others are right. Column 0 must be what it was rounded to.": (
        "Ötekiler doğru. 0. sütunda yuvarlanmış değerler olmalı."
    ),
    "Return a dictionary: a type for each layer.": (
        "Bir sözlük (dict) döndürün: her katmana bir tür."
    ),
    "Your choice takes more bytes than the budget has.": (
        "Seçiminiz bütçedekinden fazla bayt tutuyor."
    ),
    "The smallest type everywhere: there are bytes left to spend.": (
        "Her yerde en küçük tür: harcanacak bayt kaldı."
    ),
    "One type for all layers wastes bytes on layers that need none: let the layers differ.": (
        "Bütün katmanlara aynı tür, gerekmeyen yere bayt harcar: katmanlar farklı olsun."
    ),
    "The first layers got everything, whether they needed it or not: look at the damage.": (
        "İlk katmanlar, gerekse de gerekmese de her şeyi aldı: zarara bakın."
    ),
    "You looked at the damage that is saved; look at what is saved for each byte.": (
        "Önlenen zarara baktınız; bayt başına önlenen zarara bakın."
    ),
}
LANGUAGES: dict[str, dict[str, str]] = {"en": {}, "tr": TURKISH}
_chosen = ["en"]


def use(language: str) -> None:
    """Say everything from here on in this language: en or tr."""
    if language not in LANGUAGES:
        raise InputError(f"language: {language!r}: there are {', '.join(LANGUAGES)}")
    _chosen[0] = language


def say(english: str, **values: Any) -> str:
    """A text in the chosen language; ``values`` go where its {names} stand."""
    text = LANGUAGES[_chosen[0]].get(english, english)
    return text.format(**values) if values else text
